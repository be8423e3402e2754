#!/usr/bin/env bun
import { runCommand } from "./src/cli/command.ts";
/** Quick start: `bun run generate.ts "Once upon a time"`. See `--help`; `octavo generate` is the same command. */
import { generateCommand } from "./src/cli/generate.ts";

await runCommand(generateCommand("generate.ts"), process.argv.slice(2));
