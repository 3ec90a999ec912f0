// On a page that the review server serves, faces are answered where they stand. A page opened from disk leaves this alone.
if (document.body.dataset.served === "yes") {
  const main = document.getElementById("person"), said = el("p", { role: "status", class: "note said" });
  reviewer = localStorage.getItem("purify-reviewer") ?? "";
  document.querySelector("nav.controls").append(el("a", { href: "review.html" }, reviewer ? "Review the queue" : "Say who you are, to review"));
  let isBusy = false, asked = null;
  const tell = (text, isWrong = false) => { said.textContent = text; said.classList.toggle("warning", isWrong); };
  tell(reviewer ? `You are ${reviewer}. Go to a face with Tab or the arrows; K keeps, D drops, R relabels as proposed, O to another identity, U undoes your last answer.` : "Faces can be answered here once you have said who you are, on the review page.");

  const faces = () => [...main.querySelectorAll(".face[data-sample]")].filter((face) => face.offsetParent);
  const mark = (told) => {
    for (const face of main.querySelectorAll(".face[data-sample]")) {
      const one = told[face.dataset.sample];
      face.querySelector(".said-by")?.remove();
      face.classList.toggle("answered", Boolean(one));
      if (one) face.querySelector("figcaption").append(el("span", { class: "why said-by" }, el("b", {}, DONE[one.verdict]), one.identity ? " to " : "", one.identity ? el("bdi", {}, one.identity) : "", " by ", el("bdi", {}, one.by)));
    }
  };
  const during = async (work) => {
    if (isBusy) return;
    isBusy = true;
    try { tell(await work()); } catch (error) { tell(error.message, true); }
    isBusy = false;
  };
  const refresh = async () => mark(await ask("api/standing", { samples: [...new Set([...main.querySelectorAll(".face[data-sample]")].map((face) => face.dataset.sample))] }));

  const decide = (face, verdict, identity = null) => during(async () => {
    await ask("api/decide", { sample: face.dataset.sample, verdict, ...(identity === null ? {} : { identity }) });
    await refresh();
    if (identity !== null) { names.close(); back(); }
    return `${DONE[verdict]}. U takes it back.`;
  });
  const undo = () => during(async () => { const told = await ask("api/undo", {}); await refresh(); return `Taken back: ${count(told.undone)} ${told.undone === 1 ? "decision" : "decisions"}.`; });
  const back = () => { asked?.classList.remove("asked"); asked?.focus(); asked = null; };
  const names = nameForm({ choose: (name) => decide(asked, "relabel", name), wrong: (text) => tell(text ?? "", text !== null), left: back });
  const askWhose = (face) => { back(); asked = face; face.classList.add("asked"); names.open(); };
  main.after(el("div", { class: "bench" }, said, names.form));

  document.addEventListener("shown", () => {
    names.close();
    asked = null;
    if (!reviewer) return;
    for (const face of main.querySelectorAll(".face[data-sample]")) {
      face.tabIndex = 0;
      face.setAttribute("aria-keyshortcuts", face.dataset.other ? "k d r o u" : "k d o u");
    }
    refresh().catch((error) => tell(error.message, true));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const face = event.target.closest(".face[data-sample]"), key = event.key.toLowerCase(), by = { arrowright: 1, arrowleft: -1 }[key];
    if (by && face) { const all = faces(); all[all.indexOf(face) + by]?.focus(); event.preventDefault(); }
    if (!/^[kdroumas]$/.test(key)) return;
    if (!reviewer) tell("Say who you are first, on the review page: its link is at the top.");
    else if (key === "u") undo();
    else if (/[mas]/.test(key)) tell(`${key.toUpperCase()} answers a case of the queue, on the review page. Of a face: K, D, R or O.`);
    else if (!face) tell("Go to a face first, with Tab or the arrows.");
    else if (key === "o") { event.preventDefault(); askWhose(face); }
    else if (key === "r" && !face.dataset.other) tell(NOT_PROPOSED);
    else decide(face, { k: "keep", d: "drop", r: "relabel" }[key]);
  });
}
