// The page an address names. Every page is one module with `page(root, address)`.

import { take } from "caseback/app/api";
import { page as casebook } from "caseback/app/casebook";
import { page as claim } from "caseback/app/claim";
import { page as claims } from "caseback/app/claims";
import { page as compare } from "caseback/app/compare";
import { page as begin } from "caseback/app/new";
import { page as prompt } from "caseback/app/prompt";
import { shell } from "caseback/app/shell";
import { page as run } from "caseback/app/run";

take();
const root = document.getElementById("view");
const pages = { "": casebook, run, compare, claims, claim, prompt, new: begin };
const [, place, id] = location.pathname.split("/");
const name = place === "claims" && id ? "claim" : place;
pages[name](shell(root, name), id && decodeURIComponent(id));
