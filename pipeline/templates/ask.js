// Talking to the review server, from the pages that it serves.

const DONE = { keep: "Kept", drop: "Dropped", relabel: "Relabelled", merge: "Merged", apart: "Kept apart" };
const NOT_PROPOSED = "No identity is proposed for this face. O relabels it to one that you name.";
let reviewer = "";

/** What the server answers. Throws an error whose message is for the reviewer. */
const ask = async (address, body) => {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json", "X-Purify": "review" }, body: JSON.stringify({ by: reviewer, ...body }) };
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer, so this was not recorded. Start `purify review` again and open the address that it prints.");
  }
  const told = answer.headers.get("content-type")?.startsWith("application/json") ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(told.error);
  return told;
};
