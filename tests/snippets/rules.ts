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

/** Reviewed one by one: a block that is not named runs as it stands, and a rule that fits none is an error. */
export const RULES: readonly Rule[] = [
  {
    document: "README.md",
    has: "npm install -g",
    skip: "installs Bun and packages from a network, and runs all tests, this one included",
  },
  {
    document: "README.md",
    has: "bun run test:unit",
    skip: "runs for many minutes, in parts on a GPU; scripts are held against package.json",
  },
  { document: "docs/add-a-kernel.md", has: "capLogits(", quotes: "src/backend/cuda/ops/cap-logits.ts" },
  { document: "docs/add-an-op.md", has: "in place; see", quotes: "src/backend/backend.ts" },
  { document: "docs/add-an-op.md", has: "function checkCapLogits", quotes: "src/backend/checks.ts" },
  { document: "docs/add-an-op.md", has: "Math.tanh", quotes: "src/backend/cpu/cpu-backend.ts" },
  { document: "docs/add-a-model.md", has: "const OLMO2", quotes: "src/models/family-defaults.ts" },
  { document: "docs/add-a-model.md", has: "forward(context", quotes: "src/models/olmo2.ts" },
  {
    document: "docs/cli.md",
    has: "octavo completion zsh",
    replace: [["source <(octavo completion zsh)", "octavo completion zsh >~/octavo.zsh"]],
  },
  { document: "docs/deployment.md", has: "octavo-key", replace: [["/run/secrets", "~"]] },
  {
    document: "docs/deployment.md",
    has: "octavo bench serve",
    replace: [
      [
        "--num-prompts 1000 --input-len 512 --output-len 128",
        "--num-prompts 4 --input-len 16 --output-len 4",
      ],
    ],
  },
  { document: "docs/gguf.md", has: "sha256-…", replace: [["sha256-…", "sha256-1"]] },
  { document: "docs/gguf.md", has: "LLM.create", before: 'import { LLM } from "octavo";' },
  {
    document: "docs/parallel.md",
    has: "LLM.create",
    before:
      'import { LLM } from "octavo";\nawait using _ = { [Symbol.asyncDispose]: () => llm[Symbol.asyncDispose]() };',
  },
  { document: "docs/scale.md", has: "pip install vllm-router", skip: "another program, from a network" },
  { document: "docs/scale.md", has: "pip install sglang-router", skip: "another program, from a network" },
  { document: "docs/scale.md", has: "pip install 'litellm", skip: "another program, from a network" },
  { document: "docs/scale.md", has: "haproxy -f", skip: "another program" },
  { document: "docs/scale.md", has: "nginx -c", skip: "another program" },
  {
    document: "docs/serving.md",
    has: "@openai/agents",
    skip: "a package that nothing here depends on",
  },
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
      ["--num-prompts 256 --input-len 512 --output-len 128", "--num-prompts 4 --input-len 16 --output-len 4"],
      ["octavo bench serve --num", "octavo bench serve --base-url http://127.0.0.1:8000 --num"],
      [
        "octavo bench serve --workload bench/workloads/nano-vllm.json --request-rate 20",
        "octavo bench serve --help",
      ],
    ],
  },
];
