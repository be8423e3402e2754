import { expect, setDefaultTimeout, test } from "bun:test";
import { parseMessages } from "../../../src/server/schemas/messages.ts";

setDefaultTimeout(300_000);

test("a message's fields keep the client's order", () => {
  const message = { role: "tool", content: "c", tool_call_id: "1" };
  expect(JSON.stringify(parseMessages([message]))).toBe(JSON.stringify([message]));
});
