// The page an address names. Every page is one module with `page(root, address)`.

import { take } from "caseback/app/api";
import { page as casebook } from "caseback/app/casebook";
import { page as compare } from "caseback/app/compare";
import { page as begin } from "caseback/app/new";
import { page as prompt } from "caseback/app/prompt";
import { shell } from "caseback/app/shell";
import { page as run } from "caseback/app/run";

take();
const root = document.getElementById("view");
const pages = { "": casebook, run, compare, prompt, new: begin };
const [, name, id] = location.pathname.split("/");
pages[name](shell(root, name), id && decodeURIComponent(id));
