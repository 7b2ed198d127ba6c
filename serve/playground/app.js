// The playground: one page over the public API, nothing else. Text from anywhere is put in as text, never as markup.

const $ = (id) => document.getElementById(id);
const state = { world: null, base: "", running: null };

function headers() {
  const token = $("token").value.trim();
  return { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `${answer.status} ${answer.statusText}`);
}

function show(error) {
  $("problem").textContent = error ? String(error.message ?? error) : "";
  $("problem").hidden = !error;
}

function guarded(work) {
  return async () => {
    show(null);
    try {
      await work();
    } catch (error) {
      if (error.name !== "AbortError") show(error);
    }
  };
}

// 1 · Who

async function connect() {
  const [models, tasks, world] = await Promise.all([
    call("v1/models").then((a) => a.json()),
    call("v1/tasks").then((a) => a.json()),
    fetch("playground/world.json").then((a) => a.json()),
  ]);
  state.base = models.data.find((m) => !m.id.startsWith("user:"))?.id ?? "";
  state.world = world;
  const task = tasks.data[0];
  $("service").textContent = `connected: ${state.base}, ${task.name}`;
  $("fields").textContent = `(fields: ${task.fields.join(", ")})`;
  fill($("sample"), "paste below", world.users.map((user) => user.name));
}

function fill(select, first, names) {
  select.replaceChildren(...[first, ...names].map((name, i) => new Option(name, i ? String(i - 1) : "")));
}

// 2 · Their past

function chooseSample() {
  const user = state.world?.users[$("sample").value];
  if (!user) return;
  $("history").value = JSON.stringify(user.history, null, 1);
  fill($("question"), "type below", user.questions.map((q) => q.text));
}

const path = () => `v1/users/${encodeURIComponent($("user").value.trim())}`;

async function assemble() {
  let history;
  try {
    history = JSON.parse($("history").value);
  } catch {
    throw new Error("history: is no JSON; paste an array of items, or pick a sample");
  }
  $("assemble").disabled = true;
  $("assembling").textContent = "assembling …";
  const started = performance.now();
  try {
    const topK = $("top-k").value ? { top_k: Number($("top-k").value) } : {};
    const body = JSON.stringify({ history, rule: $("rule").value, ...topK });
    const made = await call(`${path()}/assembly?detail=pieces`, { method: "PUT", body }).then((a) => a.json());
    $("assembling").textContent = `assembled in ${Math.round(performance.now() - started)} ms`;
    draw(made);
    for (const id of ["download", "forget"]) $(id).disabled = false;
  } catch (error) {
    $("assembling").textContent = "";
    throw error;
  } finally {
    $("assemble").disabled = false;
  }
}

function draw(made) {
  const phases = Object.entries(made.seconds ?? {}).map(([name, s]) => `${name} ${Math.round(1000 * s)} ms`);
  const facts = {
    "history items": made.history_items,
    "stored for this user": `${made.bytes} bytes`,
    "sharers chosen": made.sharers.length,
    ...(phases.length ? { phases: phases.join(" · ") } : {}),
  };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [cell("dt", name), cell("dd", value)]));
  const rows = made.sharers.slice(0, 12).map((s) => s.sharer);
  $("map").replaceChildren(heads(made.projections), body(made.projections, rows));
  $("made").hidden = false;
  reveal(made.projections.length);
}

function cell(kind, text, className = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = className;
  return made;
}

function heads(projections) {
  const head = document.createElement("thead");
  const layers = document.createElement("tr");
  const kinds = document.createElement("tr");
  layers.append(cell("th", "layer"));
  kinds.append(cell("th", ""));
  for (const layer of new Set(projections.map((p) => p.layer))) {
    const group = cell("th", layer);
    group.colSpan = projections.filter((p) => p.layer === layer).length;
    layers.append(group);
  }
  for (const p of projections) {
    const kind = p.kind.split(".").at(-1).replace("_proj", "");
    kinds.append(cell("th", kind, kind.length > 2 ? "upright" : ""));
  }
  head.append(layers, kinds);
  return head;
}

function body(projections, sharers) {
  const made = document.createElement("tbody");
  // Fitted weights may be below zero or above one.
  const most = Math.max(1, ...projections.flatMap((p) => p.picks.map((pick) => Math.abs(pick.weight))));
  for (const sharer of sharers) {
    const row = document.createElement("tr");
    row.append(cell("th", sharer));
    for (const p of projections) {
      const weight = p.picks.find((pick) => pick.sharer === sharer)?.weight ?? 0;
      const square = cell("td", "", weight < 0 ? "later minus" : "later");
      square.style.setProperty("--w", `${Math.round((100 * Math.abs(weight)) / most)}%`);
      square.title = `${p.name}: ${weight.toFixed(2)}`;
      row.append(square);
    }
    made.append(row);
  }
  return made;
}

function reveal(columns) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const squares = [...$("map").querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  for (let column = 0; column < columns; column += 1) {
    const appear = () => squares.forEach((row) => row[column]?.classList.remove("later"));
    if (still) appear();
    else setTimeout(appear, column * Math.min(60, 1500 / columns));
  }
}

async function download() {
  const blob = await call(`${path()}/adapter`).then((a) => a.blob());
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${$("user").value.trim()}.zip`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function forget() {
  await call(`${path()}/assembly`, { method: "DELETE" });
  $("made").hidden = true;
  $("assembling").textContent = "forgotten";
  for (const id of ["download", "forget"]) $(id).disabled = true;
}

// 3 · Ask

function chooseQuestion() {
  const question = state.world?.users[$("sample").value]?.questions[$("question").value];
  if (question) $("input").value = question.text;
  $("gold").textContent = "";
}

async function ask() {
  const text = $("input").value.trim();
  if (!text) throw new Error("question: is empty; type one or pick a sample's");
  if (!state.world) await connect();
  const question = state.world.users[$("sample").value]?.questions.find((q) => q.text === text);
  const prompt = `${state.world.before}${text}${state.world.after}`;
  state.running?.abort();
  state.running = new AbortController();
  $("stop").disabled = false;
  $("gold").textContent = "";
  const user = `user:${$("user").value.trim()}`;
  try {
    await Promise.all([
      answer(state.base, prompt, $("base-answer"), $("base-time")),
      answer(user, prompt, $("user-answer"), $("user-time")),
    ]);
    if (question) $("gold").textContent = `This user's own answer: ${question.gold}`;
  } finally {
    $("stop").disabled = true;
  }
}

async function answer(model, prompt, out, time) {
  out.textContent = "";
  time.textContent = "";
  const started = performance.now();
  let first = 0;
  for await (const part of stream(model, prompt)) {
    first ||= performance.now();
    out.textContent += part;
  }
  const took = Math.round(performance.now() - started);
  time.textContent = first ? `first token after ${Math.round(first - started)} ms, done after ${took} ms` : "no tokens";
}

async function* stream(model, prompt) {
  const body = JSON.stringify({
    model, prompt, stream: true, max_tokens: Number($("tokens").value), temperature: Number($("temperature").value),
  });
  const sent = await call("v1/completions", { method: "POST", body, signal: state.running.signal });
  const reader = sent.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      const text = event.choices[0]?.text;
      if (text) yield text;
    }
  }
}

$("connect").addEventListener("click", guarded(connect));
$("sample").addEventListener("change", chooseSample);
$("question").addEventListener("change", chooseQuestion);
$("assemble").addEventListener("click", guarded(assemble));
$("download").addEventListener("click", guarded(download));
$("forget").addEventListener("click", guarded(forget));
$("ask").addEventListener("click", guarded(ask));
$("stop").addEventListener("click", () => state.running?.abort());
