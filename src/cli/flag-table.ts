import { type Command, Option } from "commander";

/** A flag's spelling, meaning, and the parser of its value (text when left out). */
export type FlagSpec =
  | readonly [flags: string, description: string]
  | readonly [flags: string, description: string, parse: (text: string, previous: never) => unknown];

/** Flags by the option that they set. */
export type FlagTable<Name extends string> = Readonly<Record<Name, FlagSpec>>;

/** Adds a table of flags as one group of the help. A switch also gets its opposite, which the help leaves out. */
export function addFlags(command: Command, group: string, table: FlagTable<string>): Command {
  for (const [flags, description, parse] of Object.values<FlagSpec>(table)) {
    const option = new Option(flags, description).helpGroup(group);
    if (parse) option.argParser(parse as (text: string, previous: unknown) => unknown);
    if (option.negate) command.addOption(new Option(flags.replace("--no-", "--")).hideHelp());
    command.addOption(option);
    if (option.isBoolean() && !option.negate)
      command.addOption(new Option(flags.replace("--", "--no-")).hideHelp());
  }
  return command;
}

/** The options of a table that were given on the command line, in the environment or in a configuration file. */
export function givenFlags<Options>(command: Command, table: FlagTable<string>): Options {
  const given = Object.entries<FlagSpec>(table).flatMap(([name, [flags]]) => {
    const attribute = new Option(flags).attributeName();
    const source = command.getOptionValueSource(attribute);
    return source === undefined || source === "default" ? [] : [[name, command.getOptionValue(attribute)]];
  });
  return Object.fromEntries(given) as Options;
}
