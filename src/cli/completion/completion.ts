import { Argument, type Command } from "commander";
import { createCommand } from "../command.ts";
import { bashScript } from "./bash.ts";
import { describeCommands } from "./command-tree.ts";
import { fishScript } from "./fish.ts";
import { zshScript } from "./zsh.ts";

const SCRIPTS = { bash: bashScript, zsh: zshScript, fish: fishScript } as const;

/**
 * `completion`: a script that completes commands, flags and names of models in a shell.
 * @param program the program with all of its commands, when the script is asked for
 */
export function completionCommand(name: string, program: () => Command): Command {
  return createCommand(name, [
    "source <(octavo completion bash)                                  in ~/.bashrc",
    "source <(octavo completion zsh)                                   in ~/.zshrc, after compinit",
    "octavo completion fish > ~/.config/fish/completions/octavo.fish",
  ])
    .description("Prints a script that completes commands, flags and names of models in a shell.")
    .addArgument(new Argument("<shell>", "the shell").choices(Object.keys(SCRIPTS)))
    .action((shell: keyof typeof SCRIPTS) => console.log(SCRIPTS[shell](describeCommands(program()))));
}
