import type { ToolSpec } from "../formats/format.ts";
import type { WrittenTool } from "../formats/written-turn.ts";

/** Which tools a reply may call: none, any, at least one, or the one named. */
export type ToolChoice = "none" | "auto" | "required" | { readonly name: string };

/** A function that the model may call, in OpenAI's form, as chat templates print it. */
export interface FunctionTool {
  readonly type: "function";
  readonly function: {
    readonly name: string;
    readonly description?: string | null;
    /** JSON schema of the arguments, which are an object. Left out: there are none. */
    readonly parameters?: Readonly<Record<string, unknown>> | null;
    /** Calls keep to the schema. Default false. */
    readonly strict?: boolean | null;
  };
}

/** The tools of a request, as far as their calls must be read. */
export function toolSpecs(tools: readonly FunctionTool[]): readonly ToolSpec[] {
  return tools.map(({ function: { name, parameters } }) => ({ name, parameters: parameters ?? undefined }));
}

/** The tools of a request, as far as calls of them must be written. @param isFree arguments are any object, but those of strict tools. */
export function writtenTools(tools: readonly FunctionTool[], isFree: boolean): readonly WrittenTool[] {
  return tools.map(({ function: tool }, i) => {
    const strict = tool.strict === true;
    const schema = isFree && !strict ? ANY_ARGUMENTS : (tool.parameters ?? NO_ARGUMENTS);
    const param = `tools[${i}].function.parameters`;
    return { name: tool.name, arguments: { schema: JSON.stringify(schema), param, strict } };
  });
}

const ANY_ARGUMENTS = { type: "object" };
const NO_ARGUMENTS = { type: "object", properties: {}, additionalProperties: false };
