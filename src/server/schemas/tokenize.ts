import { z } from "zod";
import { conversationShape } from "./chat.ts";
import { LIST, MODEL, promptShape } from "./request-body.ts";

/** Body of `/tokenize`: a prompt, or a conversation. */
export const TokenizeBody = z.object({
  ...promptShape,
  ...conversationShape,
  prompt: z.string().nullish(),
  return_token_strs: z.boolean().nullish(),
});

/** Body of `/detokenize`. */
export const DetokenizeBody = z.object({ model: MODEL, tokens: LIST });
