// The page of one identity, named by its number in the address: identity.html#n12
{
  const main = document.getElementById("person");
  const people = Number(document.body.dataset.people), drawn = Number(document.body.dataset.drawn);
  const isServed = document.body.dataset.served === "yes";

  /** A face out of the identity's sheet. */
  const picture = (person, tile, alt) => {
    const image = el("img", { src: person.sheet, alt, width: 112, height: 112, loading: "lazy" });
    image.style.objectPosition = `-${(tile % 16) * 112}px -${Math.floor(tile / 16) * 112}px`;
    return image;
  };
  const tile = (person, face) =>
    el("figure", { class: `face ${face.verdict}`, "data-sample": face.id, "data-verdict": face.verdict, "data-other": face.other },
      picture(person, face.tile, `${SPOKEN[face.verdict]}, ${degrees(face.angle).replace("°", " degrees")}`),
      el("figcaption", {},
        el("span", { class: "line" }, sign(face.verdict), " ", el("strong", {}, degrees(face.angle)), face.pair ? ` · photo ${face.pair}` : ""),
        face.verdict === "keep" ? null : el("span", { class: "why" }, el("b", {}, SPOKEN[face.verdict]), ` ${face.why}`),
        face.by ? el("span", { class: "why" }, "decided by ", el("bdi", {}, face.by)) : null));
  const faces = (person, some) => el("ul", { class: "faces" }, ...some.map((face) => el("li", {}, tile(person, face))));
  const section = (title, note, ...children) => el("section", {}, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null, ...children);

  const imagined = (person) =>
    person.imagined.length === 0 ? null : section("The face that the network imagines", null,
      el("div", { class: "imagined" }, ...person.imagined.map((one) =>
        el("figure", {}, el("img", { src: one.file, alt: `The face the network imagines for ${one.about}`, width: 190, height: 190 }),
          el("figcaption", {}, el("strong", {}, one.about), ` ${degrees(one.angle)} from it. No photograph.`)))));

  /** Every sample a dot at its angle; dots of one degree and verdict are stacked. */
  const strip = (person) => {
    const given = VERDICTS.filter((verdict) => person.strip[verdict]);
    if (given.length === 0) return null;
    const all = given.flatMap((verdict) => person.strip[verdict].map(([degree]) => degree));
    const first = Math.floor(Math.min(...all) / 10) * 10, last = Math.max(first + 20, Math.ceil((Math.max(...all) + 1) / 10) * 10);
    const width = Math.max(300, main.clientWidth - 78), lane = 40, left = 96, right = width - 22, x = (degree) => left + ((degree - first) / (last - first)) * (right - left);
    const most = Math.max(...given.flatMap((verdict) => person.strip[verdict].map(([, samples]) => samples)));
    const chart = svg("svg", { class: "chart strip", role: "img", viewBox: `0 0 ${width} ${given.length * lane + 34}` });
    const told = svg("title");
    told.textContent = "Angles of the samples, by verdict: " + given.map((verdict) => `${SPOKEN[verdict]} from ${person.strip[verdict][0][0]} to ${person.strip[verdict].at(-1)[0]} degrees`).join("; ");
    chart.append(told);
    given.forEach((verdict, at) => {
      const base = (at + 1) * lane, name = svg("text", { x: 0, y: base - 8 });
      name.textContent = `${SIGNS[verdict]} ${verdict}`;
      chart.append(name, svg("line", { class: "grid", x1: left, x2: right, y1: base, y2: base }));
      for (const [degree, samples] of person.strip[verdict])
        chart.append(svg("circle", { class: verdict, cx: x(degree + 0.5).toFixed(1), cy: base - 8, r: (2.5 + 6 * Math.sqrt(samples / most)).toFixed(1) }));
    });
    const apart = (right - left) / (last - first) < 4 ? 20 : 10;
    for (let degree = first; degree <= last; degree += apart) {
      const label = svg("text", { x: x(degree), y: given.length * lane + 18, "text-anchor": "middle" });
      label.textContent = `${degree}°`;
      chart.append(label);
    }
    return section("Angles to the dominant sub-center", "A dot is a degree; the larger, the more samples.", el("div", { class: "card" }, chart));
  };

  const relabels = (person) => {
    const proposed = person.faces.filter((face) => face.verdict === "relabel" && face.other);
    return proposed.length === 0 ? null : section("Of another identity", "Left the sample; right, the surest face of the identity that it is exported as, or that is proposed for it.",
      el("ul", { class: "couples" }, ...proposed.map((face) =>
        el("li", { class: "card" }, tile(person, face),
          el("figure", { class: "face keep" }, face.other_tile === undefined ? el("div", { class: "none" }, "nothing was kept of it") : picture(person, face.other_tile, `The surest face of ${face.other}`),
            el("figcaption", {}, face.exported ? "exported as " : "proposed: ", el("bdi", {}, face.other), face.other_angle === undefined ? null : el("span", {}, ", ", el("strong", {}, degrees(face.other_angle)), " from it")))))));
  };

  const pairs = (person) => {
    const groups = new Map();
    for (const face of person.faces) if (face.pair) groups.set(face.pair, [...(groups.get(face.pair) ?? []), face]);
    const several = [...groups.values()].filter((group) => group.length > 1);
    return several.length === 0 ? null : section("The same photograph again", "One of each group is kept: the largest as crawled, then the sharpest.", ...several.map((group) => el("div", { class: "card" }, faces(person, group))));
  };

  const sheets = (person) => {
    const kinds = el("select", { id: "kinds" }, el("option", { value: "" }, "all"), ...VERDICTS.map((verdict) => el("option", { value: verdict }, SPOKEN[verdict])));
    const groups = person.subcenters.map(([subcenter, samples, kept], at) => {
      const some = person.faces.filter((face) => (face.subcenter ?? null) === subcenter);
      const title = subcenter === null ? "Samples" : `Sub-center ${subcenter}${at === 0 ? ", the dominant one" : ""}`;
      return el("section", { class: "card subcenter" }, el("h3", {}, title), el("p", { class: "note" }, `${count(samples)} samples, ${count(kept)} of them kept; ${count(some.length)} shown, by angle`), faces(person, some));
    });
    kinds.addEventListener("change", () => {
      for (const face of main.querySelectorAll(".subcenter .face")) face.parentElement.hidden = kinds.value !== "" && face.dataset.verdict !== kinds.value;
    });
    return section("Faces by sub-center of the first round", "Where there are more than are shown, they are spread evenly from the smallest angle to the largest.", el("p", { class: "controls" }, el("label", {}, "Show ", kinds)), ...groups);
  };

  const tell = (name, counts) => {
    document.getElementById("name").textContent = name;
    document.getElementById("counts").textContent = counts;
    document.title = `${name} · audit`;
  };
  const show = async () => {
    const number = Number(/^#n(\d{1,9})$/.exec(location.hash)?.[1] ?? 0);
    if (number >= people) { tell("No such identity", `This run has ${count(people)}.`); main.replaceChildren(); return; }
    for (const [id, other] of [["previous", number - 1], ["next", number + 1]]) {
      const link = document.getElementById(id);
      if (other < 0 || other >= people) link.removeAttribute("href"); else link.setAttribute("href", `#n${other}`);
    }
    const listed = await load(numbered("list", Math.floor(number / LIST_ROWS))), at = number % LIST_ROWS;
    const counts = VERDICTS.map((verdict, which) => `${count(listed.verdicts[which][at])} ${SPOKEN[verdict]}`).join(" + ");
    const told = `${count(listed.samples[at])} samples = ${counts}`;
    tell(listed.names[at], told);
    if (number >= drawn && !isServed) {
      main.replaceChildren(el("p", { class: "empty" }, "No page was drawn for this identity. ", el("code", {}, "purify review RUN"), " draws it when it is asked for; the setting audit.identities says how many are drawn beforehand."));
      return;
    }
    const person = (await load(numbered("people", Math.floor(number / BLOCK))))[number % BLOCK];
    tell(person.name, told);
    main.replaceChildren(...[imagined(person), strip(person), relabels(person), sheets(person), pairs(person)].filter(Boolean));
    document.body.dataset.ready = String(number);
    document.dispatchEvent(new Event("shown"));
  };
  const safely = () => show().catch((error) => main.replaceChildren(el("p", { class: "warning" }, `${error.message}. The folder of this page is not whole: make it anew with purify export.`)));
  addEventListener("hashchange", () => { scrollTo(0, 0); safely(); });
  safely();
}
