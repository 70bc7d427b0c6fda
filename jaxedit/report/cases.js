// The browser of cases: reads the data in the page, and draws only what is looked at.
// Everything that a model or a dataset says goes through textContent.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const PAGE = 50;
  const MARKS = ["✗", "✗", "◐", "✓", "–"];

  const el = (tag, cls, ...inside) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    node.append(...inside.filter((x) => x !== null && x !== undefined && x !== ""));
    return node;
  };

  // A text of unknown language and direction, what is searched for marked.
  const said = (text, cls) => {
    const node = el("span", cls);
    node.dir = "auto";
    const words = state.search;
    text = String(text);
    let from = 0;
    const lower = words ? text.toLowerCase() : "";
    // letters that change their length in lower case would shift the marks
    for (let i; words && lower.length === text.length && (i = lower.indexOf(words, from)) >= 0;) {
      node.append(text.slice(from, i), el("mark", "", text.slice(i, i + words.length)));
      from = i + words.length;
    }
    node.append(text.slice(from));
    return node;
  };

  const state = { search: "", verdict: "", kind: "", mark: "", order: "", shown: PAGE };
  const cases = data.cases.map((c) => ({
    place: c[0], id: c[1], verdict: c[2], info: c[4], failed: c[5], skipped: c[6], edit: c[7],
    continued: c[9], scores: c[10], text: null,
    requests: c[3].map(([prompt, subject, target, truth]) => ({ prompt, subject, target, truth })),
    probes: c[8].map((p) => ({
      key: data.keys[p[0]], prompt: p[1], answers: p[2], group: p[3], before: p[4],
      after: p[5] === 0 ? p[4] : p[5], agreement: p[6], kl: p[7], right: p[8],
    })),
  }));
  const inOrder = { "": cases, place: [...cases].sort((a, b) => a.place - b.place) };

  const readable = (key) => key.replaceAll("_", " ").replaceAll("/", " · ");
  const local = (key) => key.startsWith("locality/") || key === "retain";
  const inKind = (key, kind) => !kind || key === kind || key.startsWith(kind + "/");
  const marked = (right, mark) =>
    !mark || (mark === "wrong" ? right === 0 : mark === "right" ? right === 1 : right === null);
  const wanted = (p) => inKind(p.key, state.kind) && marked(p.right, state.mark);

  const searchable = (c) => c.text ??= [
    c.id, c.info, ...c.failed,
    ...c.requests.flatMap((r) => [r.prompt.replace("{}", r.subject), r.target, ...r.truth]),
    ...c.probes.flatMap((p) => [p.prompt, ...p.answers.flat(),
      ...[p.before, p.after].flatMap((a) => (a ? [a[0], a[1]] : []))]),
    ...c.continued.flat(),
  ].join("\n").toLowerCase();

  const matching = () => inOrder[state.order].filter((c) =>
    (state.verdict === "" || c.verdict === Number(state.verdict)) &&
    ((!state.kind && !state.mark) || c.probes.some(wanted)) &&
    (!state.search || searchable(c).includes(state.search)));

  const signed = (text) => text.replace("-", "−");
  const rounded = (x) => signed((Math.round(x * 1000) / 1000).toString());

  // What is said: freely where that was asked for, and else, or where they differ, what stands in
  // the place of an answer that the model is led through.
  const answer = (a) => {
    if (!a) return [el("span", "unjudged", "–")];
    const [led, free] = a.slice(0, 2).map((x) => (x === null ? null : x.trim()));
    if (led === null && free === null) return [el("span", "unjudged", "–")];
    const out = [said((free ?? led) || "(nothing)", "said")];
    if (led !== null && free !== null && !free.startsWith(led)) {
      out.push(el("span", "more", "led: ", said(led || "(nothing)")));
    }
    return out;
  };

  // "log p −3.25 → −0.50": a number before and after the edit
  const moved = (p, i, name, digits) => {
    const [before, after] = [p.before, p.after].map((a) => {
      const x = a?.[i] ?? null;
      return x === null ? null : signed(digits ? x.toFixed(digits) : x.toPrecision(2));
    });
    if (after === null) return [];
    return [`${name} ${before !== null && before !== after ? before + " → " : ""}${after}`];
  };

  const facts = (p) => {
    const found = [...moved(p, 3, "P(new)"), ...moved(p, 4, "P(former)")];
    if (!found.length) found.push(...moved(p, 2, "log p", 2));
    if (local(p.key) && p.agreement !== null) found.push("agreement " + rounded(p.agreement));
    if (local(p.key) && p.kl !== null) found.push("KL " + rounded(p.kl));
    return found.length ? [el("span", "more facts-line", ...found.map((f) => el("span", "", f)))] : [];
  };

  const judged = (p) => {
    if (p.right === null) return el("span", "unjudged", "– not judged");
    const word = local(p.key) ? ["changed", "kept"] : ["wrong", "right"];
    return el("span", p.right ? "right" : "wrong", (p.right ? "✓ " : "✗ ") + word[p.right]);
  };

  const expected = (p) =>
    p.answers.length ? p.answers.map((names) => names.join(" / ")).join("; ") : "as before";

  // Roles are said, because the style of narrow screens makes blocks of the cells.
  const row = (...cells) => {
    const node = el("tr", "", ...cells);
    node.setAttribute("role", "row");
    return node;
  };
  const table = (probes) => {
    const heads = ["judgement", "prompt", "expected", "before", "after"];
    const head = row(...heads.map((text) => {
      const cell = el("th", "", text);
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
      return cell;
    }));
    const kinds = [...new Set(probes.map((p) => p.key))].map((key) => {
      const name = el("th", "", readable(key));
      name.colSpan = heads.length;
      name.scope = "rowgroup";
      name.setAttribute("role", "rowheader");
      const rows = probes.filter((p) => p.key === key).map((p) => row(
        ...[[judged(p)], [said(p.prompt)], [said(expected(p))], answer(p.before),
          [...answer(p.after), ...facts(p)]].map((inside, i) => {
          const cell = el("td", "", ...inside);
          cell.setAttribute("role", "cell");
          if (i > 1) cell.dataset.name = heads[i];
          return cell;
        })));
      const part = el("tbody", "", row(name), ...rows);
      part.setAttribute("role", "rowgroup");
      return part;
    });
    const whole = el("table", "probes", el("thead", "", head), ...kinds);
    whole.setAttribute("role", "table");
    return whole;
  };

  const request = (r) => {
    const [front, ...back] = r.prompt.split("{}");
    return [said(front), back.length ? el("strong", "", said(r.subject)) : null,
      said(back.join("{}")), " → ", el("strong", "", said(r.target))];
  };

  // What opens below a case's line.
  const body = (c) => {
    const out = el("div", "open");
    for (const why of c.failed) out.append(el("p", "wrong", "✗ ", said(why)));
    const formerly = (r) => (r.truth.length ? ` (formerly ${r.truth.join(" / ")})` : "");
    for (const r of c.requests) {
      if (c.requests.length > 1) out.append(el("p", "", ...request(r), said(formerly(r))));
    }
    const about = [c.requests.length === 1 ? formerly(c.requests[0]).slice(2, -1) : "", c.info];
    out.append(el("p", "note", said(about.filter(Boolean).join("; "))));
    const shown = c.probes.filter(wanted);
    if (shown.length) out.append(table(shown));
    const hidden = c.probes.length - shown.length;
    if (hidden) {
      out.append(el("p", "note", `${hidden} more answers do not fit “Kind of probe” and “Answers”.`));
    }
    for (const [beginning, before, after] of c.continued) {
      const side = (name, text) => el("div", "", el("span", "", name),
        said(beginning), said(text === null ? " (nothing)" : text));
      out.append(el("h4", "", "continued freely"),
        el("div", "texts", side("before", before), side("after", after)));
    }
    for (const why of c.skipped) out.append(el("p", "note", "left out: ", said(why)));
    const numbers = [
      ...Object.entries(c.edit).map(([k, v]) => `${readable(k)} ${Number(v.toPrecision(4))}`),
      ...c.scores.flatMap((v, i) => (v === null ? [] : [`${readable(data.metrics[i])} ${rounded(v)}`])),
    ];
    if (numbers.length) {
      const more = el("details", "plain", el("summary", "", "numbers of this case"),
        el("p", "note", numbers.join("; ")));
      out.append(more);
    }
    return out;
  };

  // right of judged, over the kinds that share their first word
  const tally = (c) => {
    const counts = new Map();
    for (const p of c.probes) {
      if (p.right === null) continue;
      const kind = p.key.split("/")[0];
      const found = counts.get(kind) ?? [0, 0];
      counts.set(kind, [found[0] + p.right, found[1] + 1]);
    }
    return el("span", "tally", ...[...counts].map(([kind, [right, all]]) => {
      const whole = right === all;
      return el("span", "", el("span", whole ? "right" : "wrong", whole ? "✓" : "✗"),
        ` ${readable(kind)} ${right}/${all}`);
    }));
  };

  const line = (c) => {
    const first = c.requests[0];
    const rest = c.requests.length - 1;
    const what = el("span", "what", ...(first ? request(first) : ["(no request)"]),
      rest > 0 ? ` and ${rest} more` : "");
    const summary = el("summary", "",
      el("span", "verdict v" + c.verdict, MARKS[c.verdict] + " " + data.verdicts[c.verdict]),
      what, el("span", "id", c.id), tally(c));
    const details = el("details", "", summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length < 2) details.append(body(c));
    });
    return el("li", "", details);
  };

  let found = [];
  const extend = (from) => {
    at("list").append(...found.slice(from, state.shown).map(line));
    at("more").hidden = found.length <= state.shown;
    const seen = Math.min(state.shown, found.length);
    at("count").textContent = found.length
      ? `${seen.toLocaleString("en")} of ${found.length.toLocaleString("en")} cases shown` : "No case fits.";
  };
  const update = () => {
    found = matching();
    state.shown = PAGE;
    at("list").replaceChildren();
    extend(0);
  };

  const option = (value, text) => {
    const node = el("option", "", text);
    node.value = value;
    return node;
  };
  const tell = (right, all) => ` (${all - right} of ${all} wrong)`;
  const fill = () => {
    const count = (v) => cases.filter((c) => c.verdict === v).length;
    at("verdict").append(option("", `all (${cases.length})`),
      ...data.verdicts.flatMap((word, i) => (count(i) ? [option(i, `${word} (${count(i)})`)] : [])));
    const kinds = new Map(); // a key and, where it has several parts, what it begins with
    for (const p of cases.flatMap((c) => c.probes)) {
      for (const kind of new Set([p.key.split("/")[0], p.key])) {
        const sum = kinds.get(kind) ?? [0, 0];
        kinds.set(kind, p.right === null ? sum : [sum[0] + p.right, sum[1] + 1]);
      }
    }
    const sorted = [...kinds].sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1));
    at("kind").append(option("", "all"),
      ...sorted.map(([kind, [right, all]]) => option(kind, readable(kind) + (all ? tell(right, all) : ""))));
    at("mark").append(option("", "all"), option("wrong", "with a wrong one ✗"),
      option("right", "with a right one ✓"), option("none", "not judged"));
    at("order").append(option("", "failures first"), option("place", "as they were run"));
  };
  const rank = (kind) => {
    const at = ["edit", "rephrase", "portability", "locality"].indexOf(kind.split("/")[0]);
    return at < 0 ? 9 : at;
  };

  fill();
  for (const id of ["verdict", "kind", "mark", "order"]) {
    at(id).addEventListener("change", () => { state[id] = at(id).value; update(); });
  }
  let waiting;
  at("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.search = at("search").value.trim().toLowerCase();
      update();
    }, 120);
  });
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", () => {
    const from = state.shown;
    state.shown += PAGE;
    extend(from);
    at("list").children[from]?.querySelector("summary").focus();
  });
  at("controls").hidden = false;
  update();
})();
