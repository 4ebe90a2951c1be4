"use strict";
const $ = (id) => document.getElementById(id);
const FIELDS = ["text", "without", "picture", "colour", "like", "words", "centred", "kind"];
let state = {}, chosen = new Set(), latest = 0, took = 0, typing;

async function ask(path, body, type = "application/json") {
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {} : { method: "POST", body, headers: { "Content-Type": type } });
  } catch {
    throw new Error("The search command does not answer: is it still running?");
  }
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `It answered ${answer.status}.`);
  return answer;
}

function told(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

/* What is asked stands in the address, so a link is the view. */
function read() {
  const asked = new URLSearchParams(location.search);
  state = Object.fromEntries(FIELDS.filter((name) => asked.get(name)).map((name) => [name, asked.get(name)]));
  if (asked.has("duplicates")) state.duplicates = asked.get("duplicates");
}

function go(change, replace = false) {
  state = { ...state, ...change };
  for (const name in state) if (state[name] === "" || state[name] === undefined) delete state[name];
  const search = new URLSearchParams(state).toString();
  history[replace ? "replaceState" : "pushState"](null, "", search ? `?${search}` : location.pathname);
  show();
}

function form(like) {
  for (const name of ["text", "without", "centred", "kind"]) if (document.activeElement !== $(name)) $(name).value = state[name] || "";
  $("words").value = 1 - (state.words ?? 0.5);
  $("words").disabled = !(state.text && (state.picture || state.colour || state.like));
  if (state.colour) $("colour").value = state.colour;
  $("swatch").hidden = !state.colour;
  $("swatch").style.setProperty("--picked", state.colour || "");
  const shown = state.picture ? `picture/${state.picture}` : like?.picture ? `thumbnail/${like.row}` : "";
  $("preview").hidden = !shown;
  if (shown) $("preview").src = shown; else $("preview").removeAttribute("src");
  $("pictured").textContent = state.colour || (state.picture ? "Your picture" : like ? `Like ${short(like.item)}` : "");
  $("clear").hidden = $("looks").hidden = !(state.colour || state.picture || state.like);
}

async function show() {
  form();
  const mine = ++latest;
  const empty = !(state.text || state.picture || state.colour || state.like || state.duplicates);
  if (empty) {
    told();
    $("grid").replaceChildren();
    $("status").textContent = "Type words, pick a colour, or drop a picture.";
    return;
  }
  $("status").textContent = "Searching …";
  try {
    if (state.duplicates) {
      const { groups, sizes } = await (await ask(`duplicates?least=${encodeURIComponent(state.duplicates)}`)).json();
      if (mine !== latest) return;
      $("grid").replaceChildren(...groups.map((rows, i) => group(rows, sizes[i])));
      $("status").textContent = groups.length ? `${groups.length} groups with a cosine of at least ${state.duplicates}` : "No duplicates.";
    } else {
      const { hits, like, ms } = await (await ask("search", JSON.stringify(state))).json();
      if (mine !== latest) return;
      took = ms;
      form(like);
      $("grid").replaceChildren(...hits.map(card));
      $("status").textContent = hits.length ? `${hits.length} nearest, in ${ms} ms` : "The index holds nothing of this kind.";
    }
    told();
  } catch (error) {
    if (mine !== latest) return;
    $("grid").replaceChildren();
    $("status").textContent = "";
    told(error);
  }
  select();
}

function group(rows, size) {
  const box = document.createElement("section"), head = document.createElement("h2");
  box.className = "group";
  head.textContent = `${size} alike`;
  box.append(head, ...rows.map(card));
  return box;
}

function card(hit) {
  const box = $("card").content.cloneNode(true), look = box.querySelector(".look"), tick = box.querySelector("input");
  const name = short(hit.item);
  if (hit.picture) {
    const image = new Image();
    image.loading = "lazy";
    image.alt = "";
    image.src = `thumbnail/${hit.row}`;
    image.onerror = () => look.replaceChildren(words("This picture cannot be shown", "gone"));
    look.append(image);
  } else look.append(words(hit.kind === "text" ? hit.item : "No picture here", hit.kind === "text" ? "" : "gone"));
  look.setAttribute("aria-label", `More like ${name}`);
  look.title = "More like this";
  look.onclick = () => { go({ like: String(hit.row), text: "", without: "", picture: "", colour: "", duplicates: "" }); scrollTo(0, 0); };
  box.querySelector("h2").textContent = hit.kind === "text" ? "text" : name;
  box.querySelector("h2").className = hit.kind;
  box.querySelector("h2").title = hit.id;
  box.querySelector(".hidden").textContent = `Select ${name}`;
  tick.checked = chosen.has(hit.row);
  tick.onchange = () => { chosen[tick.checked ? "add" : "delete"](hit.row); select(); };
  const score = box.querySelector(".score"), meter = box.querySelector("meter");
  if (hit.cosine === undefined) score.remove();
  else {
    score.querySelector("b").textContent = hit.cosine.toFixed(3);
    score.title = "Cosine, and its percentile among random pairs of these kinds";
  }
  if (hit.cosine === undefined || hit.percentile === null) meter.remove();
  else {
    meter.value = -Math.log10(1 - Math.min(hit.percentile / 100, 0.9999));
    meter.setAttribute("aria-label", "percentile");
    score.querySelector("span").textContent = `percentile ${(Math.floor(hit.percentile * 10) / 10).toFixed(1)}`;
  }
  return box;
}

function short(text) {
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

function words(text, kind) {
  const span = document.createElement("span");
  span.textContent = text;
  span.className = kind;
  return span;
}

function select() {
  $("chosen").hidden = !chosen.size;
  $("count").textContent = chosen.size;
}

async function pictured(file) {
  if (!file) return;
  try {
    const { picture } = await (await ask("picture", file, "application/octet-stream")).json();
    go({ picture, colour: "", like: "", duplicates: "" });
  } catch (error) {
    told(error);
  }
}

async function save(form) {
  try {
    const answer = await ask("export", JSON.stringify({ rows: [...chosen], form }));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `selected.${form}`;
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    told(error);
  }
}

const asked = () => go({ text: $("text").value.trim(), without: $("without").value.trim(), duplicates: "" });
$("query").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typing); asked(); });
for (const id of ["text", "without"]) $(id).addEventListener("input", () => {
  clearTimeout(typing);
  if (took < 300 || !$(id).value) typing = setTimeout(asked, 350);  /* where an answer takes long, Enter asks */
});
$("preview").addEventListener("error", () => $("preview").hidden = true);
$("words").addEventListener("change", () => go({ words: String(1 - $("words").value) }));
for (const id of ["centred", "kind"]) $(id).addEventListener("change", () => go({ [id]: $(id).value }));
$("colour").addEventListener("change", () => go({ colour: $("colour").value, picture: "", like: "", duplicates: "" }));
$("file").addEventListener("change", () => { pictured($("file").files[0]); $("file").value = ""; });
$("clear").addEventListener("click", () => { go({ colour: "", picture: "", like: "" }); $("text").focus(); });
$("twins").addEventListener("click", () => go({ text: "", without: "", picture: "", colour: "", like: "", duplicates: "0.99" }));
$("link").addEventListener("click", async () => {
  await navigator.clipboard.writeText(location.href).then(() => $("status").textContent = "The link is copied.", () => $("status").textContent = location.href);
});
$("none").addEventListener("click", () => { chosen.clear(); document.querySelectorAll(".pick input").forEach((each) => each.checked = false); select(); $("twins").focus(); });
for (const button of document.querySelectorAll("[data-form]")) button.addEventListener("click", () => save(button.dataset.form));
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop") pictured([...event.dataTransfer.files].find((each) => each.type.startsWith("image/")) || event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files][0];
  if (file) { event.preventDefault(); pictured(file); }
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) { event.preventDefault(); $("text").focus(); }
});
addEventListener("popstate", () => { read(); show(); });

read();
show();
ask("about").then((answer) => answer.json()).then((about) => {
  const count = (number) => number.toLocaleString("en");
  $("about").textContent = `${count(about.rows)} rows (${count(about.kinds.image)} pictures, ${count(about.kinds.text)} texts) · ${String(about.checkpoint).split("/").pop()}`
    + (about.ann ? ` · approximate, recall ${about.ann.recall}` : "");
}).catch(told);
