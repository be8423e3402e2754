import { isJsonObject } from "../../base/json-object.ts";
import { type FunctionTool, type ToolChoice, toolSpecs } from "../../chat/tools.ts";
import { invalidValue } from "../errors.ts";

const MAX_NAME_LENGTH = 128;
/** Letters and digits of any script, and what the names of namespaces are joined with. */
const NAME = /^[\p{L}\p{N}_.:/-]+$/u;

/** JSON schema of `tools`, for the OpenAPI document; `checkTools` does the checking. */
export const TOOLS_DOCUMENT = {
  description: "Functions that the model may call.",
  type: "array",
  minItems: 1,
  items: {
    type: "object",
    required: ["type", "function"],
    properties: {
      type: { const: "function" },
      function: {
        type: "object",
        required: ["name"],
        properties: {
          name: { type: "string", maxLength: MAX_NAME_LENGTH },
          description: { type: "string" },
          parameters: { type: "object", description: "JSON schema of the arguments." },
          strict: { type: "boolean" },
        },
      },
    },
  },
};

/** JSON schema of `tool_choice`, likewise. */
export const TOOL_CHOICE_DOCUMENT = {
  description: "Default auto with tools.",
  anyOf: [
    { enum: ["none", "auto", "required"] },
    {
      type: "object",
      required: ["type", "function"],
      properties: {
        type: { const: "function" },
        function: { type: "object", required: ["name"], properties: { name: { type: "string" } } },
      },
    },
  ],
};

/** Checks the tools of a request. @throws ApiError naming the first mistake by its path. */
export function checkTools(tools: readonly unknown[]): void {
  if (tools.length === 0) throw invalidValue("tools", "tools must not be empty");
  const names = new Set<string>();
  for (const [i, tool] of tools.entries()) {
    const name = checkTool(tool, `tools[${i}]`);
    if (names.has(name)) {
      const path = `tools[${i}].function.name`;
      throw invalidValue(path, `${path}: there is another tool of that name`);
    }
    names.add(name);
  }
}

/** The tool's name. */
function checkTool(tool: unknown, where: string): string {
  if (!isJsonObject(tool)) throw invalidValue(where, `${where} must be an object`);
  if (tool["type"] !== "function")
    throw invalidValue(
      `${where}.type`,
      `${where}.type must be "function", which is the only type of tools here`,
    );
  const path = `${where}.function`;
  const definition = tool["function"];
  if (!isJsonObject(definition)) throw invalidValue(path, `${path} must be an object`);
  const { name, description, parameters, strict } = definition;
  if (typeof name !== "string" || name.length > MAX_NAME_LENGTH || !NAME.test(name)) {
    const form = `must be a name of 1 to ${MAX_NAME_LENGTH} letters, digits, or any of _ . : / -`;
    throw invalidValue(`${path}.name`, `${path}.name ${form}`);
  }
  const optional = (field: string, value: unknown, isRight: boolean, kind: string) => {
    if (value === undefined || value === null || isRight) return;
    throw invalidValue(`${path}.${field}`, `${path}.${field} must be ${kind}`);
  };
  optional("description", description, typeof description === "string", "a string");
  optional("parameters", parameters, isJsonObject(parameters), "a JSON schema, which is an object");
  optional("strict", strict, typeof strict === "boolean", "true or false");
  if (isJsonObject(parameters)) checkParameters(parameters, `${path}.parameters`);
  return name;
}

/** Arguments are an object, so the schema must allow one. */
function checkParameters({ type, properties }: Readonly<Record<string, unknown>>, path: string): void {
  if (type !== undefined && type !== "object" && !(Array.isArray(type) && type.includes("object")))
    throw invalidValue(`${path}.type`, `${path}.type must be "object"`);
  if (properties !== undefined && properties !== null && !isJsonObject(properties))
    throw invalidValue(`${path}.properties`, `${path}.properties must be an object`);
}

/**
 * The choice of tools; null counts as left out.
 * @param checked the request's tools; undefined: it has none.
 * @throws ApiError naming the field.
 */
export function parseToolChoice(value: unknown, checked: readonly unknown[] | undefined): ToolChoice {
  const choice = value ?? undefined;
  if (choice === "none" || (choice === undefined && !checked)) return "none";
  if (!checked) throw invalidValue("tool_choice", "tool_choice needs tools");
  if (choice === undefined || choice === "auto") return "auto";
  if (choice === "required") return choice;
  const isFunction =
    isJsonObject(choice) && choice["type"] === "function" && isJsonObject(choice["function"]);
  if (!isFunction) {
    const message =
      'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}';
    throw invalidValue("tool_choice", message);
  }
  const { name } = choice["function"] as { readonly name?: unknown };
  const path = "tool_choice.function.name";
  const tool = toolSpecs(checked as readonly FunctionTool[]).find((tool) => tool.name === name);
  if (!tool) throw invalidValue(path, `${path} must be the name of one of the tools`);
  return { name: tool.name };
}
