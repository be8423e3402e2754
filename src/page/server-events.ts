/** An event of a stream: its type, `message` unless it says another, and its data. */
export interface ServerEvent {
  readonly type: string;
  readonly data: string;
}

/** The events of a reply, as HTML's `text/event-stream` has them. `EventSource` itself sends no key. */
export async function* serverEvents(reply: Response): AsyncGenerator<ServerEvent, void, undefined> {
  const reader = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop()!;
      for (const part of parts) {
        const event = parseEvent(part);
        if (event.data !== "") yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function parseEvent(text: string): ServerEvent {
  let type = "message";
  const data: string[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) type = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  return { type, data: data.join("\n") };
}
