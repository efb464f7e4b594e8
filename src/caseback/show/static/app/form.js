// A form from the fields a Config has. What it gives back holds only what was changed, so that a link to it stays short.

import { el } from "caseback/dom";

// Returns {box, values({whole})}; values() raises an Error that names the field when something is no number or, of a whole
// form, when what is needed is not there.
export function form(fields, given, { models, changed }) {
  const made = fields.map((field) => entry(field, given[field.name], { models, changed, path: field.name }));
  const own = made.filter(({ field }) => !field.common);
  const rest = made.filter(({ field }) => field.common);
  const box = [
    own.map(({ box }) => box),
    rest.length > 0 && el("details", { class: "more", open: rest.some(({ field }) => field.name in given) },
      el("summary", {}, own.length ? "Model, seed and machine" : "Settings"), rest.map(({ box }) => box)),
  ];
  
  function values({ whole = false } = {}) {
    const found = collect(made);
    const missing = whole && fields.find(({ needed, name }) => needed && (found[name] === undefined || found[name] === ""));
    if (missing) {
      document.getElementById(`field-${missing.name}`)?.focus();
      throw new Error(`${words(missing.name)} is needed.`);
    }
    return found;
  }

  return { box, values };
}

function collect(made) {
  const entries = made.map(({ field, value }) => [field.name, value()]).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries);
}

function entry(field, given, { models, changed, path }) {
  if (field.kind === "group") {
    const inner = field.fields.map((one) => entry(one, given?.[one.name], { models, changed, path: `${path}.${one.name}` }));
    const box = el("details", { class: "group", open: given !== undefined },
      el("summary", {}, `${words(field.name)} settings`, field.doc && el("span", { class: "soft" }, ` ${field.doc}`)), inner.map((one) => one.box));
    return { field, box, value: () => (Object.keys(collect(inner)).length ? collect(inner) : undefined) };
  }
  const id = `field-${path}`;
  const input = inputOf(field, given, id, field.name === "model" ? models.filter(Boolean) : field.suggested);
  input.main.addEventListener("input", changed);
  const label = el("label", { for: id }, words(field.name), field.needed && el("span", { class: "needed" }, " needed"));
  const doc = field.doc && el("p", { class: "doc", id: `${id}-doc` }, field.doc);
  const box = el("div", { class: `field ${field.kind}` }, label, el("div", {}, input.nodes, doc));
  return { field, box, value: () => read(field, input.main) };
}

const words = (name) => name.replaceAll("_", " ");

function inputOf(field, given, id, suggested) {
  const value = given ?? field.default;
  const about = { id, "aria-describedby": field.doc ? `${id}-doc` : null, required: field.needed, autocomplete: "off", spellcheck: "false" };
  if (field.kind === "flag") return one(el("input", { ...about, type: "checkbox", checked: Boolean(value) }));
  if (field.kind === "choice")
    return one(el("select", about, field.choices.map((choice, i) => el("option", { value: i, selected: choice === value }, String(choice)))));
  if (field.name === "prompt") {
    const area = el("textarea", { ...about, rows: "2" });
    area.value = value ?? "";
    return one(area);
  }
  const listed = suggested?.length ? el("datalist", { id: `${id}-list` }, suggested.map((text, i) => el("option", { value: text, label: field.labels?.[i] }))) : null;
  const input = el("input", { ...about, type: "text", list: listed && `${id}-list`,
    inputmode: field.kind === "integer" ? "numeric" : field.kind === "number" ? "decimal" : null,
    placeholder: { texts: "separated by commas", numbers: "separated by commas" }[field.kind] ?? (field.default === null && !field.needed ? "not set" : null) });
  input.value = written(value);
  return { main: input, nodes: [input, listed] };
}

const one = (node) => ({ main: node, nodes: [node] });
const written = (value) => (value === null || value === undefined ? "" : Array.isArray(value) ? value.join(", ") : String(value));

// What was entered, undefined where that is the default.
function read(field, input) {
  const value = entered(field, input);
  return JSON.stringify(value) === JSON.stringify(field.default) && !field.needed ? undefined : value;
}

function entered(field, input) {
  if (field.kind === "flag") return input.checked;
  if (field.kind === "choice") return field.choices[Number(input.value)];
  const text = field.name === "prompt" ? input.value : input.value.trim();
  if (field.kind === "texts" || field.kind === "numbers") {
    const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
    return field.kind === "texts" ? parts : parts.map((part) => numberOf(field, part));
  }
  if (text === "") return field.needed ? undefined : field.default;
  return field.kind === "text" ? text : numberOf(field, text);
}

function numberOf(field, text) {
  const value = Number(text.replace("−", "-"));
  const fits = Number.isFinite(value) && (field.kind === "number" || field.kind === "numbers" || Number.isInteger(value));
  if (!fits) throw new Error(`${words(field.name)} is “${text}”; it takes ${field.kind === "integer" ? "a whole number" : "numbers"}.`);
  return value;
}
