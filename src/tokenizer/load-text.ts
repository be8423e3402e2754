import { existsSync, readFileSync, statSync } from "node:fs";
import type { EngineConfig } from "../base/config.ts";
import { ConfigError } from "../base/errors.ts";
import { ChatTemplate } from "./chat-template.ts";
import { Tokenizer } from "./tokenizer.ts";

/** What a model needs to read and write text. */
export interface TextModel {
  /** Undefined with `skipTokenizerInit`. */
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
}

/** @throws ModelNotFoundError or ModelDataError; ConfigError for a chat template that is none. */
export async function loadText(folder: string, config: EngineConfig): Promise<TextModel> {
  const tokenizer = config.skipTokenizerInit ? undefined : await Tokenizer.load(folder);
  return { tokenizer, chatTemplate: loadChatTemplate(tokenizer, config.chatTemplate) };
}

/** `override`: a template's source or the path of one. */
function loadChatTemplate(tokenizer: Tokenizer | undefined, override: string | undefined) {
  const isFile = override !== undefined && existsSync(override) && statSync(override).isFile();
  if (override !== undefined && !isFile && !override.includes("{"))
    throw new ConfigError("chatTemplate", `chatTemplate ${override} is no file and no template`);
  const source = isFile ? readFileSync(override, "utf8") : (override ?? tokenizer?.chatTemplate);
  return source === undefined ? undefined : new ChatTemplate(source, tokenizer?.specialTokens);
}
