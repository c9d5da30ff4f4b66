// The page of one worker: asks it every two seconds and shows what it says. Nothing is loaded from elsewhere.
//
// Whatever a producer sent reaches the page as text (`textContent`) and never as markup; the page's policy
// (Trusted Types) refuses the other way.

const EVERY_MS = 2000;
const ANSWER_MS_MAX = 8000;
const SHOWN_S = 300;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

// --- words ---

/** Milliseconds as a person reads them; a number stays with its unit. */
function duration(ms) {
  const sign = ms < 0 ? "−" : "";
  const size = Math.abs(ms);
  if (size < 1000) return `${sign}${fine.format(size)}\u00a0ms`;
  if (size < 120e3) return `${sign}${fine.format(size / 1e3)}\u00a0s`;
  if (size < 7200e3) return `${sign}${Math.round(size / 60e3)}\u00a0min`;
  if (size < 172800e3) return `${sign}${Math.round(size / 3600e3)}\u00a0h`;
  return `${sign}${count.format(size / 86400e3)}\u00a0d`;
}

const number = (value) => (value === null || value === undefined ? "–" : count.format(value));
const sum = (values) => values.reduce((a, b) => a + b, 0);

/** An entry's own time. */
function timeOf(entryId) {
  const at = new Date(Number(entryId.split("-")[0]));
  return Number.isNaN(at.getTime()) ? "" : at.toISOString().replace("T", " ").replace("Z", " UTC");
}

// --- elements ---

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/** Change text only where it differs: a screen reader tells of changes. */
function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** A link that explains an entry or an order. */
function asked(text) {
  return element("a", { href: `#q=${encodeURIComponent(text)}`, className: "id", textContent: text });
}

/** Labels with what they say; those that say nothing are left out. */
function sheet(rows) {
  const list = element("dl", { className: "sheet" });
  for (const [label, value] of rows) {
    if (value === null || value === undefined || value === "") continue;
    list.append(element("dt", { textContent: label }), element("dd", {}, value));
  }
  return list;
}

/** Show items in a list, and keep the element of one that stays: it may be open, or have the focus. */
function show(list, items, key, make) {
  const kept = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const name = key(item);
    const found = kept.get(name) ?? make(item);
    found.dataset.key = name;
    return found;
  });
  for (const child of [...list.children]) if (!wanted.includes(child)) child.remove();
  wanted.forEach((child, at) => {
    if (list.children[at] !== child) list.insertBefore(child, list.children[at] ?? null);
  });
}

// --- what the worker says of itself ---

function showState(status) {
  const ready = status.unready.length === 0;
  const troubles = [
    ...status.unready,
    ...Object.entries(status.unanswered).map(([server, reason]) => `${server} did not answer this page: ${reason}`),
  ];
  byId("state").dataset.state = ready ? "ready" : "unready";
  say(byId("state"), ready ? "Taking orders in" : "Not taking orders in");
  show(byId("troubles"), troubles, (text) => text.replace(/[\d.]+ s/, ""), () => element("li"));
  troubles.forEach((text, at) => say(byId("troubles").children[at], text));
  byId("troubles").hidden = troubles.length === 0;
  say(byId("worker"), `${status.consumer} in group ${status.group}, version ${status.version}, up for ${duration(Math.round(status.now - status.started_at) * 1e3)}`);
  document.title = `${ready ? "" : "! "}Ordergate ${status.consumer}`;
  document.body.classList.remove("gone");
}

function showNow(status) {
  const last = status.history.slice(-5);
  const rate = last.length ? sum(last.map((s) => s.accepted + s.duplicate + s.rejected)) / last.length : 0;
  const timed = status.history.filter((sample) => sample.p50_ms !== null).at(-1);
  const figures = status.streams.map((stream) => stream.figures);
  const points = status.streams.map((stream) => stream.points);
  const all = (list, pick) => (list.every(Boolean) ? list.map(pick) : null);
  const total = (values) => (values && values.every((v) => v !== null) ? number(sum(values)) : "–");

  say(byId("rate"), rate < 10 ? fine.format(rate) : count.format(rate));
  say(byId("latency"), timed ? duration(timed.p50_ms) : "–");
  say(byId("latency-note"), timed ? `median; 99 of 100 within ${duration(timed.p99_ms)}` : "nothing settled lately");
  say(byId("waiting"), total(all(figures, (f) => f.waiting)));
  const lags = all(figures, (f) => f.lag_ms);
  say(byId("waiting-note"), !lags ? "Redis does not answer" : Math.max(...lags) ? `the oldest for ${duration(Math.max(...lags))}` : "all is read");
  say(byId("pending"), total(all(figures, (f) => f.pending)));
  const oldest = all(figures, (f) => f.oldest?.age_ms ?? 0);
  say(byId("pending-note"), !oldest ? "Redis does not answer" : Math.max(...oldest) ? `the oldest for ${duration(Math.max(...oldest))}` : "all is settled");
  say(byId("owed"), total(all(points, (p) => p.owed)));
  const parked = all(points, (p) => p.parked);
  say(byId("owed-note"), !parked ? "Postgres does not answer" : sum(parked) ? `and ${number(sum(parked))} refused` : "none refused");

  const settled = (word) => number(sum(status.streams.map((stream) => stream.settled[word])));
  say(byId("total"), `Since its start this worker settled ${settled("accepted")} accepted, ${settled("duplicate")} duplicate and ${settled("rejected")} rejected entries.`);
}

function showStreams(streams) {
  show(byId("streams"), streams, (s) => s.stream, (s) =>
    element("tr", {}, element("th", { scope: "row", textContent: s.stream }), ...Array.from({ length: 10 }, () => element("td"))));
  streams.forEach((s, at) => {
    const { recent, figures, points } = s;
    const cells = [
      [recent?.accepted], [recent?.duplicate], [recent?.rejected],
      [figures?.waiting], [figures ? duration(figures.lag_ms) : "–"], [figures?.pending],
      [figures?.lost, figures?.lost > 0], [figures?.dead_letters],
      [points?.owed], [points?.parked, points?.parked > 0],
    ];
    cells.forEach(([value, bad], column) => {
      const cell = byId("streams").children[at].children[column + 1];
      say(cell, typeof value === "string" ? value : number(value));
      cell.className = bad ? "bad" : "";
    });
  });
}

const SERVERS = { redis: "Redis, the streams", claims: "Redis, the claims", postgres: "Postgres", influxdb: "InfluxDB" };

function showServers(servers) {
  show(byId("servers"), servers, (its) => its.name, (its) =>
    element("li", {}, element("span", { textContent: SERVERS[its.name] ?? its.name }), " ", element("strong"), element("small"), element("small")));
  servers.forEach((its, at) => {
    const item = byId("servers").children[at];
    const [, state, since, why] = item.children;
    item.dataset.state = its.state;
    say(state, its.state);
    const losses = its.losses === 1 ? "was away once" : `was away ${number(its.losses)} times`;
    say(since, its.state === "up" ? (its.losses ? losses : "there since the start") : `for ${duration(its.down_s * 1e3)}`);
    say(why, its.error);
  });
}

function showDuplicates(duplicates) {
  show(byId("duplicates"), duplicates, (d) => `${d.stream} ${d.entry_id}`, (d) =>
    element("li", {},
      asked(d.order_id), " repeats ", asked(d.original_order_id),
      element("small", {}, `${d.symbol} ${d.side} ${d.quantity}${d.price === null ? "" : ` at ${d.price}`}, ${d.apart_ms < 0 ? `${duration(-d.apart_ms)} before it` : `${duration(d.apart_ms)} after it`}`),
      element("small", {}, asked(d.entry_id), " of ", asked(d.original_entry_id))));
  byId("no-duplicates").hidden = duplicates.length > 0;
}

function showRejections(rejections) {
  show(byId("rejections"), rejections, (r) => `${r.stream} ${r.entry_id}`, (r) => {
    const fields = [];
    for (let at = 0; at < r.fields.length; at += 2) fields.push([r.fields[at] || "(empty)", (r.fields[at + 1] ?? "") || "(empty)"]);
    const more = r.more ? element("small", { textContent: `and ${number(r.more)} more names and values` }) : "";
    return element("li", {}, element("details", {},
      element("summary", {}, element("span", { className: "id rejected", textContent: r.code }), ` ${r.order_id ?? ""}`,
        element("small", { textContent: r.reason }), element("small", { textContent: `${r.entry_id}, ${timeOf(r.entry_id)}` })),
      sheet(fields), more, element("p", {}, asked(r.entry_id))));
  });
  byId("no-rejections").hidden = rejections.length > 0;
}

// --- charts ---

function drawn(name, className, attributes) {
  const made = document.createElementNS(SVG, name);
  made.setAttribute("class", className);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** The next of 1, 1.5, 2, 3, … 10, 15, …: a scale that does not jump about. */
function top(values) {
  const most = Math.max(...values, 1e-9);
  const power = 10 ** Math.floor(Math.log10(most));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= most * 0.999);
}

const x = (sample, now) => Math.max(0, 300 * (1 - (now - sample.at) / SHOWN_S));
const GRID = [0, 50].map((y) => ({ x1: 0, x2: 300, y1: y, y2: y }));

function draw(id, shapes, label) {
  const chart = byId(id);
  chart.replaceChildren(...GRID.map((line) => drawn("line", "grid", line)), ...shapes);
  chart.setAttribute("aria-label", label);
}

function showRates(samples, now) {
  const words = ["rejected", "duplicate", "accepted"]; // stacked from below: the few stay visible
  const most = top(samples.map((sample) => sum(words.map((word) => sample[word]))));
  let below = samples.map(() => 0);
  const shapes = words.map((word) => {
    const above = samples.map((sample, at) => below[at] + sample[word]);
    const point = (heights) => (sample, at) => `${x(sample, now).toFixed(1)},${(100 - (100 * heights[at]) / most).toFixed(2)}`;
    const outline = [...samples.map(point(above)), ...samples.map(point(below)).reverse()];
    below = above;
    return drawn("polygon", `area ${word}`, { points: outline.join(" ") });
  });
  draw("rate-chart", shapes, `Entries a second over the last five minutes, at most ${fine.format(Math.max(0, ...below))}`);
  say(byId("rate-top"), samples.length ? fine.format(most) : "");
}

function showLatency(samples, now) {
  const timed = samples.filter((sample) => sample.p50_ms !== null);
  const most = top(timed.map((sample) => sample.p99_ms));
  const line = (className, pick) => {
    const steps = samples.map((sample, at) => {
      if (pick(sample) === null) return "";
      const joined = at > 0 && pick(samples[at - 1]) !== null;
      const place = `${x(sample, now).toFixed(1)},${(100 - (100 * pick(sample)) / most).toFixed(2)}`;
      return joined ? `L${place}` : `M${place}h0.8`;
    });
    return drawn("path", `line ${className}`, { d: steps.join("") || "M0,0" });
  };
  const shapes = [line("slow", (s) => s.p99_ms), line("median", (s) => s.p50_ms)];
  const worst = timed.length ? `at most ${duration(Math.max(...timed.map((s) => s.p99_ms)))}` : "nothing settled";
  draw("latency-chart", timed.length ? shapes : [], `Latency over the last five minutes, ${worst}`);
  say(byId("latency-top"), timed.length ? duration(most) : "");
}

// --- asking ---

let heardAt = Date.now();
let timer = 0;

async function ask(path) {
  const reply = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS_MAX), cache: "no-store" });
  return [reply.ok, await reply.json()];
}

function showAll(status) {
  showState(status);
  showNow(status);
  showRates(status.history, status.now);
  showLatency(status.history, status.now);
  showStreams(status.streams);
  showServers(status.dependencies);
  showDuplicates(status.duplicates);
  showRejections(status.rejections);
}

function showGone() {
  byId("state").dataset.state = "gone";
  const at = new Date(heardAt).toLocaleTimeString("en-GB");
  say(byId("state"), `The worker does not answer since ${at}`);
  document.title = "! Ordergate: no answer";
  document.body.classList.add("gone");
}

async function look() {
  clearTimeout(timer);
  try {
    const [ok, status] = await ask("status.json");
    if (!ok) throw new Error(status.error);
    heardAt = Date.now();
    showAll(status);
  } catch (error) {
    console.warn(error);
    showGone();
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, EVERY_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});

// --- the search ---

function listed(items) {
  const list = element("ol");
  for (const item of items) list.append(element("li", {}, asked(item.entry_id), ` ${item.outcome}, order `, asked(item.order_id ?? "–")));
  return list;
}

function answerOf(found) {
  const { original } = found;
  const where = original ? element("span", {}, asked(original.entry_id), ", order ", asked(original.order_id), ` in ${original.stream}`) : null;
  const outcome = found.outcome && `${found.outcome}${found.generation ? `, generation ${found.generation}` : ""}, recorded ${found.recorded_at}`;
  const rows = [
    ["Entry", found.entry_id && `${found.entry_id} in ${found.stream}, ${timeOf(found.entry_id)}`],
    ["Order id", found.order_id], ["Outcome", outcome], ["Original", where], ["In Redis", found.in_redis],
    ["Content", found.canonical], ["Hash", found.content_hash],
    ["Claim", [found.claim, found.claim_says].filter(Boolean).join(": ")], ["Point", found.point],
    ["Replay", found.replays.join("\n")],
    ...Object.entries(found.unanswered).map(([server, reason]) => [server, `does not answer: ${reason}`]),
    ["Same content", found.same_content.length > 1 ? listed(found.same_content) : null],
    ["Same order id", found.same_order_id.length > 1 ? listed(found.same_order_id) : null],
  ];
  return [element("p", { textContent: found.answer }), sheet(rows)];
}

async function explain(question) {
  byId("question").value = question;
  let shown;
  try {
    const [ok, found] = await ask(`explain.json?q=${encodeURIComponent(question)}`);
    shown = ok ? answerOf(found) : [element("p", { textContent: found.error })];
  } catch {
    shown = [element("p", { textContent: "The worker does not answer." })];
  }
  byId("answer").replaceChildren(...shown);
  byId("question-heading").scrollIntoView({ block: "nearest" }); // the link may have been far below
}

/** The question is in the address, so that links lead to answers and going back works. */
function askedByAddress() {
  const question = new URLSearchParams(location.hash.slice(1)).get("q");
  if (question) explain(question);
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = `#q=${encodeURIComponent(byId("question").value.trim())}`;
  if (location.hash === wanted) askedByAddress();
  else location.hash = wanted;
});
addEventListener("hashchange", askedByAddress);

askedByAddress();
look();
