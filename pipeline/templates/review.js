// One case at a time, answered by a key or a button. Nothing is shown as done before the server has said that it is on disk.
{
  const place = (id) => document.getElementById(id);
  const [question, box, said, trouble, entry, who] = ["question", "case", "said", "trouble", "sign", "who"].map(place);
  let current = null, isBusy = false;

  /** Runs one request at a time; what goes wrong is said, and the case stays. */
  const during = async (work) => {
    if (isBusy) return;
    isBusy = true;
    for (const button of box.querySelectorAll("button")) button.disabled = true;
    try {
      await work();
      trouble.hidden = true;
    } catch (error) {
      trouble.textContent = error.message;
      trouble.hidden = false;
      for (const button of box.querySelectorAll("button")) button.disabled = false;
    }
    isBusy = false;
  };

  const crop = (sample, alt) => el("img", { src: `crop/${sample}.jpg`, alt, width: 112, height: 112 });
  const faces = (title, some, name) =>
    el("section", {}, el("h3", {}, title, el("bdi", {}, name)),
      some.length ? el("ul", { class: "row" }, ...some.map((sample, at) => el("li", {}, crop(sample, `Kept face ${at + 1} of ${name}`)))) : el("p", { class: "empty" }, "Nothing else was kept of it."));
  const button = (key, text, act, name = null) => {
    const made = el("button", { type: "button", "aria-keyshortcuts": key.toLowerCase() }, el("kbd", { "aria-hidden": "true" }, key), text, name === null ? null : el("bdi", {}, name));
    made.addEventListener("click", act);
    return made;
  };

  const answers = () => {
    const merge = current.kind === "merge";
    return el("div", { class: "answers", role: "group", "aria-label": "Answers" },
      ...(merge ? [button("M", `Merge ${count(current.moves)} ${current.moves === 1 ? "sample" : "samples"} into `, () => answer("merge"), current.other), button("A", "Keep apart", () => answer("apart"))]
        : [button("K", "Keep", () => answer("keep")), button("D", "Drop", () => answer("drop")), current.other ? button("R", "Relabel to ", () => answer("relabel"), current.other) : null, button("O", "Other identity …", names.open)]),
      button("S", "Skip", skip), button("U", "Undo", undo));
  };
  const show = (told) => {
    names.close();
    const progress = told.progress;
    place("progress").textContent = `${count(progress.mine)} decided by you, ${count(progress.others)} by others; ${count(progress.waiting)} cases wait`;
    current = told.cases[0] ?? null;
    box.hidden = false;
    if (current === null) {
      question.textContent = "Nothing is left to ask you";
      box.replaceChildren(el("p", { class: "empty" }, "Every case is answered, skipped by you, or being answered by somebody else. ", el("code", {}, "purify export RUN"), " carries the answers out."), el("div", { class: "answers" }, button("U", "Undo", undo)));
      question.focus();
      return;
    }
    const one = current, merge = one.kind === "merge";
    question.replaceChildren(merge ? "Are these one person?" : "Is this ", merge ? "" : el("bdi", {}, one.identity), merge ? "" : "?");
    const facts = [el("span", { class: `line ${one.verdict}` }, sign(one.verdict), " ", el("strong", {}, merge ? "its surest face" : SPOKEN[one.verdict]), merge ? null : `: ${one.reason}`), el("br"),
      one.angle === null || merge ? null : `${degrees(one.angle)} from its center. `, one.why];
    const asked = el("figure", { class: "asked", "data-sample": one.sample, "data-key": one.key }, crop(one.sample, merge ? `The surest face of ${one.identity}` : "The face in question"), el("figcaption", {}, ...facts));
    const other = one.other === null ? null : faces(merge ? "Surest faces of " : `${one.other_angle === null ? "" : `${degrees(one.other_angle)} from `}`, one.others, one.other);
    box.replaceChildren(el("div", { class: "card case" }, asked, el("div", { class: "beside" }, faces("Surest faces of ", one.own, one.identity), other), answers()));
    for (const next of told.cases.slice(1)) for (const sample of [next.sample, ...next.own, ...next.others]) new Image().src = `crop/${sample}.jpg`;
    question.focus();
  };

  const answer = (verdict, identity = null) => during(async () => {
    const told = await ask("api/answer", { key: current.key, verdict, ...(identity === null ? {} : { identity }) });
    show(told);
    said.textContent = `${DONE[verdict]}${told.recorded > 1 ? `, ${count(told.recorded)} samples` : ""}. U takes it back.`;
  });
  const skip = () => during(async () => { show(await ask("api/skip", { key: current.key })); said.textContent = "Skipped."; });
  const undo = () => during(async () => { const told = await ask("api/undo", {}); show(told); said.textContent = `Taken back: ${count(told.undone)} ${told.undone === 1 ? "decision" : "decisions"}.`; });

  const wrong = (text) => { trouble.textContent = text ?? ""; trouble.hidden = text === null; if (text !== null) said.textContent = ""; };
  const names = nameForm({ choose: (name) => answer("relabel", name), wrong, left: () => question.focus() });
  said.after(names.form);

  const KEYS = { k: "keep", d: "drop", r: "relabel", m: "merge", a: "apart" };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || !reviewer) return;
    const key = event.key.toLowerCase();
    if (key === "u") { undo(); return; }
    if (current === null) return;
    const isOfNames = key === "m" || key === "a";
    if (key === "s") skip();
    else if (!KEYS[key] && key !== "o") return;
    else if (isOfNames !== (current.kind === "merge")) said.textContent = isOfNames ? "M and A answer whether two names are one person. Of this face: K, D, R or O." : "Two names are asked about: M merges them, A keeps them apart.";
    else if (key === "o") { event.preventDefault(); names.open(); }
    else if (key === "r" && !current.other) said.textContent = NOT_PROPOSED;
    else answer(KEYS[key]);
  });

  const begin = (name) => during(async () => {
    reviewer = name;
    const told = await ask(`api/next?by=${encodeURIComponent(name)}`);
    localStorage.setItem("purify-reviewer", name);
    entry.hidden = true;
    who.hidden = false;
    who.textContent = `You are ${name}. Somebody else?`;
    show(told);
  });
  const welcome = () => { names.close(); wrong(null); reviewer = ""; current = null; box.hidden = true; who.hidden = true; entry.hidden = false; question.textContent = "Who reviews?"; place("name").focus(); };
  entry.addEventListener("submit", (event) => { event.preventDefault(); const name = place("name").value.trim(); if (name) begin(name); else wrong("Type your name first: it stands under every decision."); });
  who.addEventListener("click", () => { localStorage.removeItem("purify-reviewer"); welcome(); });
  const known = localStorage.getItem("purify-reviewer");
  welcome();
  if (known) begin(known);
}
