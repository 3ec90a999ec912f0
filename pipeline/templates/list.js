// The list of all identities: loaded part by part, searched and sorted here, and only the rows in sight are in the document.
{
  const ROW_PX = 44;
  const box = document.querySelector(".rows");
  if (box) {
    const list = document.getElementById("people"), found = document.getElementById("found");
    const needle = document.getElementById("needle"), order = document.getElementById("order");
    const names = [], keys = [], samples = [], verdicts = [[], [], [], []];
    const drawn = Number(document.body.dataset.drawn);
    const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
    const removed = (at) => verdicts[1][at] + verdicts[2][at];
    const orders = {
      removed: (a, b) => a - b,
      share: (a, b) => removed(b) / samples[b] - removed(a) / samples[a] || a - b,
      relabel: (a, b) => verdicts[2][b] - verdicts[2][a] || a - b,
      review: (a, b) => verdicts[3][b] - verdicts[3][a] || a - b,
      samples: (a, b) => samples[b] - samples[a] || a - b,
      name: (a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b),
    };
    let chosen = [], shown = new Map(), asked = false;

    const row = (place) => {
      const at = chosen[place], counts = verdicts.map((column) => column[at]);
      const bar = el("span", { class: "bar", "aria-hidden": "true" });
      for (const which of [0, 2, 3, 1]) {
        const part = el("i", { class: VERDICTS[which] });
        part.style.flexGrow = counts[which];
        bar.append(part);
      }
      const spoken = VERDICTS.map((verdict, which) => (counts[which] ? `${count(counts[which])} ${SPOKEN[verdict]}` : "")).filter(Boolean).join(", ");
      const link = el("a", { href: `identity.html#n${at}`, class: at < drawn ? null : "undrawn" }, el("bdi", {}, names[at]));
      const made = el("li", { "aria-setsize": chosen.length, "aria-posinset": place + 1 }, link, bar, el("span", { class: "soft" }, `${count(samples[at])}: ${spoken}`));
      made.style.top = `${place * ROW_PX}px`;
      return made;
    };
    const draw = () => {
      asked = false;
      const first = Math.max(0, Math.floor(box.scrollTop / ROW_PX) - 4), last = Math.min(chosen.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW_PX) + 4);
      for (const [place, node] of shown) if ((place < first || place >= last) && !node.contains(document.activeElement)) { node.remove(); shown.delete(place); }
      for (let place = first; place < last; place++) if (!shown.has(place)) { const node = row(place); shown.set(place, node); list.append(node); }
      // Reading and tabbing follow the document's order, so it is that of the list.
      [...shown.entries()].sort((a, b) => a[0] - b[0]).forEach(([, node], at) => { if (list.children[at] !== node) list.insertBefore(node, list.children[at] ?? null); });
    };
    const soon = () => { if (!asked) { asked = true; requestAnimationFrame(draw); } };
    const choose = () => {
      const wanted = plain(needle.value.trim());
      chosen = [];
      for (let at = 0; at < names.length; at++) if (!wanted || keys[at].includes(wanted)) chosen.push(at);
      if (order.value !== "removed") chosen.sort(orders[order.value]);
      list.style.height = `${chosen.length * ROW_PX}px`;
      list.replaceChildren();
      shown = new Map();
      found.textContent = wanted ? `${count(chosen.length)} of ${count(names.length)} identities` : `${count(names.length)} identities`;
      draw();
    };
    const go = (place) => {
      if (place < 0 || place >= chosen.length) return;
      const top = place * ROW_PX;
      if (top < box.scrollTop) box.scrollTop = top;
      else if (top + ROW_PX > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW_PX - box.clientHeight;
      draw();
      shown.get(place).querySelector("a").focus({ preventScroll: true });
      draw();
    };

    box.addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    needle.addEventListener("input", () => { box.scrollTop = 0; choose(); });
    order.addEventListener("change", () => { box.scrollTop = 0; choose(); });
    document.querySelector("form.controls").addEventListener("submit", (event) => event.preventDefault());
    needle.addEventListener("keydown", (event) => { if (event.key === "ArrowDown") { event.preventDefault(); go(0); } });
    list.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
      const at = Number(event.target.closest("li")?.getAttribute("aria-posinset")) - 1;
      if (by === undefined || at < 0) return;
      event.preventDefault();
      if (at + by < 0 && by === -1) needle.focus();
      else go(Math.max(0, Math.min(chosen.length - 1, at + by)));
    });
    (async () => {
      for (let part = 0; part < Number(document.body.dataset.lists); part++) {
        const told = await load(numbered("list", part));
        for (let at = 0; at < told.names.length; at++) { names.push(told.names[at]); keys.push(plain(told.names[at])); samples.push(told.samples[at]); }
        verdicts.forEach((column, which) => { for (const number of told.verdicts[which]) column.push(number); });
        box.style.maxHeight = `${names.length * ROW_PX + 2}px`;
        choose();
      }
      document.body.dataset.ready = "yes";
    })().catch((error) => { found.textContent = `${error.message}. The folder of this page is not whole: make it anew with purify export.`; });
  }
}
