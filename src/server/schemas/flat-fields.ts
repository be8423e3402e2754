import { ApiError } from "../errors.ts";

/** The names of the schemas of tools that are not nested. */
export function flatTools(
  tools: readonly unknown[],
  schema = "parameters",
): Readonly<Record<string, string>> {
  return Object.fromEntries(
    tools.map((_, i) => [`tools[${i}].function.parameters`, `tools[${i}].${schema}`]),
  );
}

/** An error of the chat completions' fields in the names of another endpoint, whose tools are flat. */
export function inTermsOf<T>(names: Readonly<Record<string, string>>, run: () => T): T {
  try {
    return run();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const { status, code, message, param, headers } = error;
    const text = message
      .replaceAll(".function.", ".")
      .replace(/[a-z]+(_[a-z]+)+/g, (word) => names[word] ?? word);
    const flat = param?.replace(".function.", ".") ?? null;
    throw new ApiError(status, code, text, flat && (names[flat] ?? flat), headers);
  }
}
