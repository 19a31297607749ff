// What the server is asked.

const ENDED = "The playground has ended. Start it again with `lora-mnist play`, and reload this page.";

/** The answer to a question (POST with a body, GET without), or an Error in the server's words. */
async function ask(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response, answer;
  try {
    response = await fetch(`api/${path}`, body === undefined ? {} : post);
    answer = await response.json();
  } catch {
    throw new Error(ENDED);
  }
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

/** Call `heard` with how the teaching stands, now and whenever it changes; `lost` with words when nobody tells any more. */
function follow(heard, lost) {
  const events = new EventSource("api/teaching");
  events.onmessage = (event) => heard(JSON.parse(event.data));
  events.onopen = () => lost(null);
  events.onerror = () => lost(ENDED);
}
