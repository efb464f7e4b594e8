// The page an address names. Every page is one module with `page(root, address)`.

import { take } from "caseback/app/api";
import { page as casebook } from "caseback/app/casebook";
import { page as claim } from "caseback/app/claim";
import { page as claims } from "caseback/app/claims";
import { page as compare } from "caseback/app/compare";
import { page as begin } from "caseback/app/new";
import { page as prompt } from "caseback/app/prompt";
import { page as run } from "caseback/app/run";
import { problem, shell } from "caseback/app/shell";
import { el, put } from "caseback/dom";

take();
const root = document.getElementById("view");
const pages = { "": casebook, run, compare, claims, claim, prompt, new: begin };
const [, place, id, ...rest] = location.pathname.split("/");
const name = place === "claims" && id ? "claim" : place;
const known = Object.hasOwn(pages, name) && !rest.length && Boolean(id) === ["run", "claim"].includes(name);
const box = shell(root, name);
if (known) pages[name](box, id && named(id));
else noPage(box);

function named(id) {
  try {
    return decodeURIComponent(id);
  } catch {
    return id;
  }
}

function noPage(box) {
  document.title = "No such page · caseback";
  put(box, problem({ message: "There is no such page." }), el("p", {}, el("a", { href: "/" }, "To the casebook")));
}
