/** How a block of code in a document is run, where running it as it stands would not do. */
export interface Rule {
  /** The document, and a text that only this block of it has. */
  readonly document: string;
  readonly has: string;
  /** Why it is not run here. Another program, a network, a GPU, or time that a test has not. */
  readonly skip?: string;
  /** It is no program but a part of this file, where it must stand word for word. */
  readonly quotes?: string;
  /** Texts that are exchanged first. */
  readonly replace?: readonly (readonly [text: string, by: string])[];
  /** Code that the document leaves to the reader. */
  readonly before?: string;
}

const OPENAI =
  'import OpenAI from "openai";\nconst client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "none" });';

/** A load that a test has time for, instead of one that measures something. */
const FEW_PROMPTS = "--num-prompts 4 --input-len 16 --output-len 4";

function quoted(document: string, has: string, quotes: string): Rule {
  return { document, has, quotes };
}

function skipped(document: string, has: string, skip: string): Rule {
  return { document, has, skip };
}

/** Reviewed one by one: a block that is not named runs as it stands, and a rule that fits none is an error. */
export const RULES: readonly Rule[] = [
  skipped(
    "README.md",
    "npm install -g",
    "installs Bun and packages from a network, and runs all tests, this one included",
  ),
  skipped(
    "README.md",
    "bun run test:unit",
    "runs for many minutes, in parts on a GPU; scripts are held against package.json",
  ),
  quoted("docs/add-a-kernel.md", "capLogits(", "src/backend/cuda/ops/cap-logits.ts"),
  quoted("docs/add-an-op.md", "in place; see", "src/backend/backend.ts"),
  quoted("docs/add-an-op.md", "function checkCapLogits", "src/backend/checks.ts"),
  quoted("docs/add-an-op.md", "Math.tanh", "src/backend/cpu/cpu-backend.ts"),
  quoted("docs/add-a-model.md", "const OLMO2", "src/models/family-defaults.ts"),
  quoted("docs/add-a-model.md", "forward(context", "src/models/olmo2.ts"),
  {
    document: "docs/cli.md",
    has: "octavo completion zsh",
    replace: [["source <(octavo completion zsh)", "octavo completion zsh >~/octavo.zsh"]],
  },
  { document: "docs/deployment.md", has: "octavo-key", replace: [["/run/secrets", "~"]] },
  {
    document: "docs/deployment.md",
    has: "octavo bench serve",
    replace: [["--num-prompts 1000 --input-len 512 --output-len 128", FEW_PROMPTS]],
  },
  { document: "docs/gguf.md", has: "sha256-…", replace: [["sha256-…", "sha256-1"]] },
  { document: "docs/gguf.md", has: "LLM.create", before: 'import { LLM } from "octavo";' },
  {
    document: "docs/parallel.md",
    has: "LLM.create",
    before:
      'import { LLM } from "octavo";\nawait using _ = { [Symbol.asyncDispose]: () => llm[Symbol.asyncDispose]() };',
  },
  skipped("docs/scale.md", "pip install vllm-router", "another program, from a network"),
  skipped("docs/scale.md", "pip install sglang-router", "another program, from a network"),
  skipped("docs/scale.md", "pip install 'litellm", "another program, from a network"),
  skipped("docs/scale.md", "haproxy -f", "another program"),
  skipped("docs/scale.md", "nginx -c", "another program"),
  skipped("docs/serving.md", "@openai/agents", "a package that nothing here depends on"),
  {
    document: "docs/serving.md",
    has: "octavo serve Qwen",
    replace: [["8192", "1024"]],
  },
  {
    document: "docs/serving.md",
    has: "json: z.object",
    before:
      'import { z } from "zod";\nimport { LLM } from "octavo";\nawait using llm = await LLM.create();\nconst messages = [{ role: "user", content: "Paris" }];',
  },
  {
    document: "docs/serving.md",
    has: "const tools = [",
    before: `${OPENAI}\nconst weather = async () => "sunny";`,
  },
  { document: "docs/serving.md", has: "client.responses", before: OPENAI },
  {
    document: "docs/serving.md",
    has: "bench/workloads",
    replace: [
      ["--num-prompts 256 --input-len 512 --output-len 128", FEW_PROMPTS],
      ["octavo bench serve --num", "octavo bench serve --base-url http://127.0.0.1:8000 --num"],
      [
        "octavo bench serve --workload bench/workloads/nano-vllm.json --request-rate 20",
        "octavo bench serve --help",
      ],
    ],
  },
];
