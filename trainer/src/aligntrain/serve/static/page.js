// The page of `aligntrain serve`: it speaks to /v1 as any client does.

import { answer, models } from "./client.js";
import { drawBars, drawSmall, figure } from "./bars.js";

const $ = (id) => document.getElementById(id);
const state = { model: null, image: null, turns: [], asking: null };

// ---- the model

async function start() {
  try {
    state.model = await models();
  } catch (error) {
    if (error.status === 503) {
      trouble("The model is still being loaded…");
      setTimeout(start, 1500);
    } else {
      trouble(error.message, error.status === 401);
    }
    return;
  }
  trouble(null);
  const { id, levels, mixing, gate, knows, captions_only: captions, max_new_tokens: most } = state.model;
  document.title = id;
  $("model").textContent = id;
  $("facts").textContent = levels ? `${levels} alignment levels, mixing ${mixing}` : "no alignment levels";
  $("knows").textContent = knows ? `What it knows: ${knows}` : "";
  $("knows").hidden = !knows;
  $("longest").max = most;
  $("longest").value = Math.min(256, most);
  $("levels").hidden = $("guide").hidden = !levels;
  $("gate").hidden = !gate;
  if (captions) {
    $("question").placeholder = "This model describes images; there is nothing to ask";
    $("question").disabled = true;
    $("send").textContent = "Describe";
  }
  if (levels) drawTicks(levels);
  drawBars($("bars"), state.model, null);
  ready();
}

function drawTicks(levels) {
  // Where the server has a level of its own, nobody can ask for the mix.
  const least = state.model.level ? 1 : 0;
  Object.assign($("level"), { min: least, max: levels, value: state.model.level ?? 0 });
  $("ticks").replaceChildren(...Array.from({ length: levels + 1 - least }, (_, at) => {
    const tick = document.createElement("span");
    tick.textContent = at + least || "auto";
    return tick;
  }));
  showLevel();
}

function showLevel() {
  const { levels, gate } = state.model;
  const level = Number($("level").value);
  const auto = (gate ? "The gate mixes the levels for each question." : "The levels are mixed as in training.")
    + ` A level says how well captions fit their images: ${levels} is the best.`;
  $("level-name").textContent = level ? `level ${level}` : "auto";
  $("level").setAttribute("aria-valuetext", level ? `level ${level} of ${levels}` : "auto");
  $("level-help").textContent = level
    ? `The answer takes level ${level} alone. Captions of level 1 fit their images least, of ${levels} best.` : auto;
  const least = Number($("level").min);
  [...$("ticks").children].forEach((tick, at) => tick.classList.toggle("on", at + least === level));
}

// ---- the image

function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return trouble(`${file.name || "This"} is no image.`);
  const most = state.model?.max_body_bytes ?? Infinity;
  if (file.size * 4 / 3 + 10000 > most) {
    return trouble(`The image has ${(file.size / 1e6).toFixed(1)} MB; the server takes requests of at most ${(most / 1e6).toFixed(0)} MB.`);
  }
  const reader = new FileReader();
  reader.onload = () => {
    leave();
    state.image = reader.result;
    $("preview").src = state.image;
    showImage();
    $("question").focus();
  };
  reader.readAsDataURL(file);
}

function showImage() {
  const there = state.image !== null;
  $("preview").hidden = $("remove").hidden = !there;
  $("invite").hidden = there;
  trouble(null);
  ready();
}

$("preview").onerror = () => {
  // Some formats a browser cannot show, and the server can read.
  $("preview").hidden = true;
  $("invite").hidden = false;
};
$("file").onchange = () => { take($("file").files[0]); $("file").value = ""; };
$("remove").onclick = () => { leave(); state.image = null; $("preview").removeAttribute("src"); showImage(); $("file").focus(); };
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files[0]);
});

// ---- asking

function ready() {
  const words = state.model?.captions_only ? state.image : $("question").value.trim();
  $("send").disabled = !state.model || !words || state.asking !== null;
  $("fresh").disabled = !$("turns").children.length;
  $("stop").hidden = state.asking === null;
  $("send").hidden = state.asking !== null;
  for (const again of document.querySelectorAll(".again")) again.disabled = state.asking !== null;
}

// Another image begins another conversation; what was said about the one before can still be read.
function leave() {
  state.asking?.abort();
  state.asking = null;
  state.turns = [];
  document.querySelector(".again")?.remove();
  trouble(null);
  ready();
}

function fresh() {
  leave();
  $("turns").replaceChildren();
  $("empty").hidden = false;
  $("gate-of").textContent = "";
  if (state.model) drawBars($("bars"), state.model, null);
  ready();
}

// An image goes with the first question; each turn counts with its last answer.
function messages(turns, question) {
  const asked = [...turns.map((turn) => turn.question), question];
  return asked.flatMap((text, at) => {
    const content = [{ type: "text", text }];
    if (at === 0 && state.image) {
      content.unshift({ type: "image_url", image_url: { url: state.image } });
    }
    const said = turns[at]?.answer;
    return [{ role: "user", content }, ...(said === undefined ? [] : [{ role: "assistant", content: said }])];
  });
}

async function ask(turn, before) {
  const level = Number($("level").value);
  const guidance = state.model.levels ? Number($("guidance").value) : 1;
  const card = answerCard(turn, before, level, guidance);
  const asking = state.asking = new AbortController();
  const request = {
    model: state.model.id,
    messages: messages(before, turn.question),
    max_tokens: Number($("longest").value) || undefined,
    temperature: Number($("temperature").value),
    gate: true,
    ...(level && state.image ? { level } : {}),
    ...(guidance !== 1 && state.image ? { guidance } : {}),
  };
  trouble(null);
  ready();
  let text = "";
  try {
    for await (const event of answer(request, asking.signal)) {
      if ("gate" in event) showGate(card, event.gate, request.level);
      text += event.choices[0]?.delta.content ?? "";
      card.text.textContent = text;
      card.whole.scrollIntoView({ block: "nearest" });
    }
  } catch (error) {
    if (!asking.signal.aborted) trouble(error.message, error.status === 401);
  }
  card.whole.classList.remove("writing");
  card.whole.removeAttribute("aria-busy"); // it is read out once, whole
  const left = state.asking !== asking; // a new conversation has begun
  if (!left) {
    state.asking = null;
    if (text) turn.answer = text; else forget(turn, card);
  }
  ready();
}

function forget(turn, card) {
  card.whole.remove();
  card.giveBack(); // the answer before can be asked for again
  if (turn.answer === undefined) {
    turn.element.remove();
    state.turns.pop();
    if (!state.model.captions_only) $("question").value = turn.question;
    $("empty").hidden = $("turns").children.length > 0;
  }
}

function answerCard(turn, before, level, guidance) {
  const make = (kind, name) => Object.assign(document.createElement(kind), { className: name });
  const whole = make("div", "answer writing"), text = make("div", "text"), foot = make("footer", "");
  const tag = make("span", "tag"), small = make("span", "small"), mix = figure();
  if (state.image) whole.append(about(state.image));
  if (state.image && state.model.levels) {
    tag.textContent = (level ? `level ${level}` : "auto") + (guidance === 1 ? "" : `, guidance ${guidance}`);
  }
  foot.append(tag, small);
  whole.setAttribute("aria-busy", "true");
  const old = document.querySelector(".again"), place = old?.parentElement;
  old?.remove();
  const again = make("button", "quiet again");
  again.type = "button";
  again.textContent = "Ask again";
  again.title = "The same question, with the level as it is set now";
  again.onclick = () => ask(turn, before);
  foot.append(again);
  whole.append(text, mix.whole, foot);
  turn.element.append(whole);
  return { whole, text, small, mix, giveBack: () => place?.append(old) };
}

// The image of an answer, small; some formats a browser cannot show.
function about(address) {
  const image = Object.assign(document.createElement("img"), { className: "about", alt: "About this image", src: address });
  image.onerror = () => image.remove();
  return image;
}

function showGate(card, weights, level) {
  const shown = { weights, level };
  drawBars($("bars"), state.model, shown);
  drawSmall(card.small, state.model, shown);
  if (weights) {
    drawBars(card.mix.bars, state.model, shown);
    card.mix.whole.hidden = false;
  }
  $("gate-of").textContent = level ? `level ${level} forced` : "";
  $("gate-help").textContent = weights
    ? `Weights of levels 1 to ${weights.length}, which add up to 1${state.model.mixing === "adaptive" ? `; level ${state.model.levels} is added whole` : ""}.`
    : level ? "The gate was not asked: the answer took one level alone." : "Without an image nothing is mixed.";
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  if ($("send").disabled) return;
  const turn = { question: $("question").value.trim(), answer: undefined, element: document.createElement("li") };
  if (state.model.captions_only) turn.question = "Describe the image.";
  const words = Object.assign(document.createElement("div"), { className: "question", textContent: turn.question });
  turn.element.append(words);
  $("turns").append(turn.element);
  $("empty").hidden = true;
  const before = [...state.turns];
  state.turns.push(turn);
  if (!state.model.captions_only) $("question").value = "";
  grow();
  ask(turn, before);
};
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
$("question").oninput = () => { grow(); ready(); };
$("stop").onclick = () => state.asking?.abort();
$("fresh").onclick = () => { fresh(); $("question").focus(); };
$("level").oninput = showLevel;
$("temperature").oninput = () => {
  const value = Number($("temperature").value);
  $("temperature-name").textContent = value ? value.toFixed(1) : "0: the likeliest words";
};
$("guidance").oninput = () => {
  const value = Number($("guidance").value);
  $("guidance-name").textContent = value === 1 ? "none" : `${value}: exaggerates the level, in twice the time`;
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key-form").hidden = true;
  start();
};

function grow() {
  const area = $("question");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function trouble(sentence, key = false) {
  $("trouble").textContent = sentence ?? "";
  $("trouble").hidden = !sentence;
  $("key-form").hidden = !key;
  if (key) $("key").focus();
}

start();
