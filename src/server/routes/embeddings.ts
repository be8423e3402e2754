import { checkEmbedOptions } from "../../base/embedding.ts";
import { readRequest } from "../body/read-request.ts";
import { type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { EmbeddingsFormat } from "../replies/embeddings-format.ts";
import { generate } from "../replies/generation.ts";
import { mount } from "../router.ts";
import { promptOf } from "../schemas/prompt.ts";

/** `/v1/embeddings`. */
export function embeddingRoutes(app: ServerApp, context: ServerContext): void {
  mount(app, "/v1/embeddings", {
    POST: async (c) => {
      const { body, prompts } = await readRequest(c, context, "embeddings");
      const model = servedModel(context, body.model);
      if (context.config.logPrompts) c.get("tracked").record.prompt = prompts;
      const pooling = body.pooling ?? "last";
      const options = {
        normalize: body.normalize ?? true,
        ...(typeof body.dimensions === "number" && { dimensions: body.dimensions }),
      };
      checkEmbedOptions(options, context.llm.modelConfig.hiddenSize);
      return generate(
        c,
        context,
        {
          ...{ body, model, pooling, sampling: {}, prompts: prompts.map(promptOf) },
          ...{
            promptScores: { tops: [], inChoices: false },
            names: { prompt: "input", promptTokenIds: "input" },
          },
        },
        new EmbeddingsFormat({ ...options, model, base64: body.encoding_format === "base64" }),
      );
    },
  });
}
