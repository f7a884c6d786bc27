// The gate's weights as bars, one for each level.

// Of each level: its weight from 0 to 1, and whether it is added whole, beside what the gate mixes.
function columns({ levels, mixing }, shown) {
  return Array.from({ length: levels }, (_, at) => {
    const level = at + 1;
    const place = levels > 1 ? at / (levels - 1) : 1;
    if (shown?.level) return { level, place, weight: level === shown.level ? 1 : 0, whole: false };
    if (level === levels) {
      return { level, place, weight: shown?.weights && mixing === "adaptive" ? 1 : 0, whole: true };
    }
    return { level, place, weight: shown?.weights?.[at] ?? 0, whole: false };
  });
}

function styled(kind, name, { weight, place }, largest) {
  const element = document.createElement(kind);
  element.className = name;
  element.style.setProperty("--weight", weight / largest);
  element.style.setProperty("--place", place);
  return element;
}

// Local weights are drawn against the largest of them, for of many levels each has little.
function largestOf(all) {
  return Math.max(0.01, ...all.filter((one) => !one.whole).map((one) => one.weight));
}

export function drawBars(into, model, shown) {
  if (!model.levels) return;
  const all = columns(model, shown), largest = largestOf(all);
  into.replaceChildren(...all.map((one) => {
    const bar = document.createElement("div");
    bar.className = one.whole ? "bar whole" : "bar";
    const value = document.createElement("span"), name = document.createElement("span");
    value.className = "value";
    value.textContent = !one.weight ? "" : one.whole ? "+1" : one.weight.toFixed(2);
    name.className = "name";
    name.textContent = one.level;
    bar.append(value, styled("div", "fill", one, one.whole ? 1 : largest), name);
    return bar;
  }));
  const said = all.filter((one) => one.weight && !one.whole);
  into.setAttribute("aria-label", said.length
    ? said.map((one) => `level ${one.level}: ${one.weight.toFixed(2)}`).join(", ") : "No weights");
}

// A labelled place for bars within an answer, hidden until they are drawn.
export function figure() {
  const make = (kind, name, text = "") => Object.assign(document.createElement(kind), { className: name, textContent: text });
  const whole = make("figure", "mix"), bars = make("div", "bars"), axis = make("p", "axis");
  bars.setAttribute("role", "img");
  axis.setAttribute("aria-hidden", "true");
  axis.append(make("span", "", "← captions fit least"), make("span", "", "fit best →"));
  whole.append(make("figcaption", "", "Weight of each level in this answer"), bars, axis);
  whole.hidden = true;
  return { whole, bars };
}

export function drawSmall(into, model, shown) {
  if (!model.levels || !(shown.weights || shown.level)) return;
  const all = columns(model, shown).filter((one) => !one.whole), largest = largestOf(all);
  const label = Object.assign(document.createElement("span"), { className: "label", textContent: `levels 1 to ${all.at(-1).level}` });
  into.replaceChildren(label, ...all.map((one) => styled("i", "", one, largest)));
  into.title = all.map((one) => `level ${one.level}: ${one.weight.toFixed(3)}`).join("\n");
}
