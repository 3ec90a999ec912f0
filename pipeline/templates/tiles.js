// On a page that the review server serves, faces are answered where they stand. A page opened from disk leaves this alone.
if (document.body.dataset.served === "yes") {
  const main = document.getElementById("person"), said = el("p", { role: "status", class: "note said" });
  reviewer = localStorage.getItem("purify-reviewer") ?? "";
  document.querySelector("nav.controls").append(el("a", { href: "review.html" }, reviewer ? "Review the queue" : "Say who you are, to review"));
  document.querySelector("header").append(said);
  if (reviewer) said.textContent = `You are ${reviewer}. Go to a face with Tab or the arrows; K keeps, D drops, R relabels as proposed, U undoes your last answer.`;
  let isBusy = false;

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
    try { said.textContent = await work(); said.classList.remove("warning"); } catch (error) { said.textContent = error.message; said.classList.add("warning"); }
    isBusy = false;
  };
  const refresh = async () => mark(await ask("api/standing", { samples: [...new Set([...main.querySelectorAll(".face[data-sample]")].map((face) => face.dataset.sample))] }));

  document.addEventListener("shown", () => {
    if (!reviewer) return;
    for (const face of main.querySelectorAll(".face[data-sample]")) {
      face.tabIndex = 0;
      face.setAttribute("aria-keyshortcuts", face.dataset.other ? "k d r u" : "k d u");
    }
    refresh().catch((error) => { said.textContent = error.message; });
  });
  main.addEventListener("keydown", (event) => {
    const face = event.target.closest(".face[data-sample]");
    if (!face || !reviewer || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key], verdict = { k: "keep", d: "drop", r: "relabel" }[event.key.toLowerCase()];
    if (by) { const all = faces(); all[all.indexOf(face) + by]?.focus(); event.preventDefault(); }
    else if (event.key.toLowerCase() === "u") during(async () => { const told = await ask("api/undo", {}); await refresh(); return `Taken back: ${count(told.undone)} ${told.undone === 1 ? "decision" : "decisions"}.`; });
    else if (verdict && (verdict !== "relabel" || face.dataset.other)) during(async () => { await ask("api/decide", { sample: face.dataset.sample, verdict }); await refresh(); return `${DONE[verdict]}. U takes it back.`; });
  });
}
