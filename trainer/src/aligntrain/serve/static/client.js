// What the page asks of the server.

export class Trouble extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Trouble(0, "The server does not answer.");
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Trouble(response.status, body?.error?.message ?? `The server answers ${response.status}.`);
  }
  return response;
}

// The one model that is served.
export async function models() {
  const { data } = await (await call("/v1/models")).json();
  if (!data.length) throw new Trouble(503, "The model is still being loaded.");
  return data[0];
}

// The events of an answer as they come.
export async function* answer(request, signal) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Trouble(0, "The answer broke off.");
    const events = (kept + value).split("\n\n");
    kept = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const said = JSON.parse(data);
      if (said.error) throw new Trouble(0, said.error.message);
      yield said;
    }
  }
}
