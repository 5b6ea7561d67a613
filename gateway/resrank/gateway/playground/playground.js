"use strict";
/* One search, shown before and after reranking. All candidates are fetched, so that the slider sorts them here. */

const KEY = "resrank-key";
const MOST_SHOWN = 100;
const STAGES = { embed_query: "query's encoding", retrieve: "retrieval", rerank: "reranking", rest: "the rest" };
const COLORS = { embed_query: "var(--first)", retrieve: "var(--second)", rerank: "var(--third)", rest: "var(--quiet)" };

const $ = (id) => document.getElementById(id);
let found = null;
let asked = 0;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // never as HTML: titles and texts are an index's
  return made;
}

async function search(event) {
  event.preventDefault();
  const mine = ++asked;
  const candidates = Number($("candidates").value);
  const body = { query: $("query").value, k: candidates, candidates, mode: $("mode").value };
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  sessionStorage.setItem(KEY, $("key").value);
  $("go").disabled = true;
  $("status").textContent = "Searching …";
  try {
    const answer = await fetch("v1/search", { method: "POST", headers, body: JSON.stringify(body) });
    const told = await answer.json();
    if (mine !== asked) return;
    if (answer.ok) show(told);
    else fail(told.error.message);
  } catch (error) {
    if (mine === asked) fail(error instanceof TypeError ? "The gateway does not answer." : String(error));
  } finally {
    if (mine === asked) $("go").disabled = false;
  }
}

function fail(message) {
  found = null;
  $("results").hidden = true;
  $("weight").disabled = true;
  $("status").textContent = "";
  $("failure").textContent = message;
  $("failure").hidden = false;
}

function show(told) {
  found = told;
  $("failure").hidden = true;
  const sortable = told.reranked && told.max_lexical_score !== undefined;
  $("weight").disabled = !sortable;
  if (sortable) setWeight(told.lexical_weight);
  $("after-title").textContent = told.reranked ? "After reranking" : `Not reranked (${told.reason ?? "not asked to"})`;
  const count = told.passages.length;
  $("status").textContent = count
    ? `${count} candidates in ${told.timings.total.toFixed(1)} ms`
    : "No passage was found: is the index filled?";
  $("results").hidden = count === 0;
  if (count === 0) return;
  showTimings(told.timings);
  showRankings();
}

function setWeight(weight) {
  if (weight !== undefined) $("weight").value = weight;
  $("weight-value").textContent = Number($("weight").value).toFixed(2);
}

/* As the server adds them: the reranker's score + w * BM25 / best BM25 of the index. */
function words(passage) {
  if (passage.lexical_score === undefined || !found.max_lexical_score) return 0;
  return (Number($("weight").value) * passage.lexical_score) / found.max_lexical_score;
}

function score(passage) {
  return passage.rerank_score === undefined ? passage.score : passage.rerank_score + words(passage);
}

function showTimings(timings) {
  const { total, ...stages } = timings;
  const known = Object.values(stages).reduce((sum, took) => sum + took, 0);
  stages.rest = Math.max(0, total - known);
  const lines = Object.entries(stages).map(([stage, took]) => `${STAGES[stage] ?? stage} ${took.toFixed(1)} ms`);
  $("stages").replaceChildren(...Object.entries(stages).map(([stage, took]) => {
    const piece = element("span");
    piece.style.flexGrow = took;
    piece.style.background = COLORS[stage] ?? COLORS.rest;
    return piece;
  }));
  $("stages").setAttribute("aria-label", lines.join(", "));
  $("stage-list").replaceChildren(...Object.keys(stages).map((stage, place) => {
    const line = element("li");
    const swatch = element("i", "swatch");
    swatch.style.background = COLORS[stage] ?? COLORS.rest;
    line.append(swatch, lines[place]);
    return line;
  }));
}

function showRankings() {
  const before = [...found.passages].sort((one, other) => one.candidate_rank - other.candidate_rank);
  const after = [...found.passages].sort(
    (one, other) => score(other) - score(one) || one.candidate_rank - other.candidate_rank,
  );
  const places = new Map(after.map((passage, place) => [passage.id, place + 1]));
  const count = Math.min(MOST_SHOWN, Math.max(1, Number($("shown").value) || 1));
  const most = Math.max(...found.passages.map((passage) => Math.abs(score(passage))), 1e-9);
  const best = Math.max(...found.passages.map((passage) => passage.candidate_score), 1e-9);
  $("before").replaceChildren(...before.slice(0, count).map((passage) => {
    const told = `found with ${passage.candidate_score.toFixed(3)}`;
    const line = bar([["dense", passage.candidate_score / best]], passage.candidate_score.toFixed(3), told);
    return card(passage, passage.candidate_rank, `now ${places.get(passage.id)}`, "", line);
  }));
  $("after").replaceChildren(...after.slice(0, count).map((passage, place) => {
    const climbed = passage.candidate_rank - (place + 1);
    const kind = climbed > 0 ? "up" : climbed < 0 ? "down" : "";
    const change = climbed === 0 ? "= same place" : `${climbed > 0 ? "▲" : "▼"} ${Math.abs(climbed)}, was ${passage.candidate_rank}`;
    return card(passage, place + 1, change, kind, scoreBar(passage, most));
  }));
}

function scoreBar(passage, most) {
  const total = score(passage);
  if (passage.rerank_score === undefined) return bar([["dense", total / most]], total.toFixed(3), `score ${total.toFixed(3)}`);
  const share = words(passage);
  const told = `score ${total.toFixed(3)}: reranker ${passage.rerank_score.toFixed(3)}, words ${share.toFixed(3)}`;
  return bar([["rerank", passage.rerank_score / most], ["words", share / most]], total.toFixed(3), told);
}

function bar(parts, total, told) {
  const made = element("div", "bar");
  made.title = told;
  const track = element("div", "track");
  track.setAttribute("role", "img");
  track.setAttribute("aria-label", told);
  for (const [className, part] of parts) {
    const piece = element("span", className);
    piece.style.width = `${100 * Math.max(0, Math.min(1, part))}%`;
    track.append(piece);
  }
  made.append(track, element("span", "number", total));
  return made;
}

function card(passage, rank, change, kind, line) {
  const made = element("li");
  made.dataset.id = passage.id;
  made.tabIndex = 0;
  const head = element("div", "head");
  head.append(
    element("span", "rank", rank),
    element("span", "title", passage.title || passage.id),
    element("span", `change ${kind}`, change),
  );
  made.append(head, element("p", "text", passage.text), line);
  for (const event of ["mouseenter", "focus"]) made.addEventListener(event, () => mark(passage.id));
  for (const event of ["mouseleave", "blur"]) made.addEventListener(event, () => mark(null));
  return made;
}

/* The same passage in both columns. */
function mark(id) {
  for (const each of document.querySelectorAll(".ranking li")) each.classList.toggle("marked", each.dataset.id === id);
}

$("key").value = sessionStorage.getItem(KEY) ?? "";
$("search").addEventListener("submit", search);
$("weight").addEventListener("input", () => {
  setWeight();
  if (found) showRankings();
});
$("shown").addEventListener("input", () => {
  if (found?.passages.length) showRankings();
});
