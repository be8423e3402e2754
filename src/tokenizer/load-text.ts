import { existsSync, readFileSync, statSync } from "node:fs";
import type { EngineConfig } from "../base/config.ts";
import { ConfigError } from "../base/errors.ts";
import { ChatTemplate } from "./chat-template.ts";
import { PromptEncoder } from "./prompt-encoder.ts";
import { Tokenizer } from "./tokenizer.ts";

/** Undefined with `skipTokenizerInit`. @throws ModelNotFoundError or ModelDataError. */
export async function loadTokenizer(folder: string, config: EngineConfig): Promise<Tokenizer | undefined> {
  return config.skipTokenizerInit ? undefined : Tokenizer.load(folder);
}

/** @throws ModelDataError; ConfigError for a chat template that is none. */
export function createPromptEncoder(
  tokenizer: Tokenizer | undefined,
  { chatTemplate: override }: EngineConfig,
): PromptEncoder {
  const isFile = override !== undefined && existsSync(override) && statSync(override).isFile();
  if (override !== undefined && !isFile && !override.includes("{"))
    throw new ConfigError("chatTemplate", `chatTemplate ${override} is no file and no template`);
  const source = isFile ? readFileSync(override, "utf8") : (override ?? tokenizer?.chatTemplate);
  const file = isFile ? override : override === undefined ? tokenizer?.chatTemplateFile : "chatTemplate";
  const template =
    source === undefined ? undefined : new ChatTemplate(source, tokenizer?.specialTokens, file);
  return new PromptEncoder(tokenizer, template);
}
