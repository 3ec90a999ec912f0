// Asking whose face it is: a field that offers the run's identities whose names contain what is typed. On the review page, and on identities' pages as served.

/** A form that is hidden until `open`. `choose` is given a name as the run has it; `wrong` a text, or null when nothing is wrong any more; `left` follows when it is put away unanswered. */
const nameForm = ({ choose, wrong, left }) => {
  const whose = el("input", { id: "whose", maxlength: 1024, autocomplete: "off", spellcheck: "false", role: "combobox", "aria-expanded": "false", "aria-controls": "suggested", "aria-autocomplete": "list" });
  const suggested = el("ul", { id: "suggested", role: "listbox", "aria-label": "Identities of this run" });
  const cancel = el("button", { type: "button" }, "Cancel");
  const form = el("form", { id: "relabel", class: "card controls", hidden: "" }, el("label", { class: "grow" }, "Whose face is it? ", whose), el("button", { type: "submit" }, "Relabel"), cancel, suggested);
  let offered = [], picked = -1;

  const pick = (at) => {
    picked = at;
    [...suggested.children].forEach((one, place) => one.setAttribute("aria-selected", String(place === at)));
    if (at >= 0) { whose.setAttribute("aria-activedescendant", `suggested-${at}`); suggested.children[at].scrollIntoView({ block: "nearest" }); } else whose.removeAttribute("aria-activedescendant");
  };
  const offer = (names) => {
    offered = names;
    suggested.replaceChildren(...names.map(([, shown], at) => { const one = el("li", { role: "option", id: `suggested-${at}` }, el("bdi", {}, shown)); one.addEventListener("click", () => choose(offered[at][0])); return one; }));
    whose.setAttribute("aria-expanded", String(names.length > 0));
    pick(-1);
  };
  const open = () => { form.hidden = false; whose.value = ""; offer([]); whose.focus(); };
  const close = () => { form.hidden = true; };
  const leave = () => { close(); wrong(null); left(); };

  whose.addEventListener("input", async () => {
    const like = whose.value;
    wrong(null);
    try {
      const names = like.trim() ? await ask(`api/names?like=${encodeURIComponent(like)}`) : [];
      if (whose.value === like) offer(names);
    } catch (error) { wrong(error.message); }
  });
  whose.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); pick(Math.max(-1, Math.min(offered.length - 1, picked + (event.key === "ArrowDown" ? 1 : -1)))); }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (picked >= 0) choose(offered[picked][0]);
    else if (whose.value.trim()) choose(whose.value);
    else wrong("Type a name first, or a part of one and choose from the list. Escape goes back.");
  });
  form.addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });
  cancel.addEventListener("click", leave);
  return { form, open, close };
};
