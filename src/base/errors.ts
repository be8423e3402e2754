/** Process exit codes of the command line (sysexits where one fits). */
export const ExitCode = {
  ok: 0,
  usage: 64,
  modelData: 65,
  noInput: 66,
  device: 69,
  internal: 70,
  cannotBind: 73,
  interrupted: 130,
  terminated: 143,
} as const;

/** Base class of everything Octavo throws on purpose. `code` is stable and machine-readable. */
export abstract class OctavoError extends Error {
  abstract readonly code: string;
  /** The command line's exit code when this error ends the process. */
  abstract readonly exitCode: number;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** An option of the engine or the command line is unknown, out of range, or contradicts another. */
export class ConfigError extends OctavoError {
  readonly code = "invalid_config";
  readonly exitCode = ExitCode.usage;

  constructor(
    /** The option at fault, in the spelling of `EngineOptions`. */
    readonly option: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The model folder, or a file it must contain, does not exist or cannot be opened. */
export class ModelNotFoundError extends OctavoError {
  readonly code = "model_not_found";
  readonly exitCode = ExitCode.noInput;

  constructor(
    readonly path: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** A file of the model is malformed, inconsistent, or describes what Octavo cannot run. */
export class ModelDataError extends OctavoError {
  readonly code: string = "invalid_model";
  readonly exitCode = ExitCode.modelData;

  constructor(
    /** The file at fault; the message names the rule that it breaks. */
    readonly file: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(`${file}: ${message}`, options);
  }
}

/** Well-formed, but not supported: an unknown architecture, quantisation, activation or dtype. */
export class UnsupportedModelError extends ModelDataError {
  override readonly code = "unsupported_model";
}

/** A download from the model hub failed; `status` is the HTTP status if there was a reply. */
export class DownloadError extends OctavoError {
  readonly code = "download_failed";
  readonly exitCode = ExitCode.noInput;

  constructor(
    message: string,
    readonly status: number | undefined,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** A device, its driver or its libraries are missing, too old or too small. The message names the remedy. */
export class DeviceError extends OctavoError {
  readonly code: string = "device_unavailable";
  readonly exitCode = ExitCode.device;

  /** Nothing on this device works again until the process is replaced. */
  get fatal(): boolean {
    return false;
  }
}

/** A request is invalid: it is refused when it is added and never reaches the engine's step loop, one kind excepted. */
export class InvalidRequestError extends OctavoError {
  readonly exitCode = ExitCode.usage;

  constructor(
    /** The parameter at fault, in camelCase, e.g. `topP`. */
    readonly param: string,
    message: string,
    readonly code: string = "invalid_value",
  ) {
    super(message);
  }
}

/**
 * A request's bans leave no token to draw. Refused before anything runs where that can be known; bad words of several tokens,
 * which ban only where their beginning stands, may show it later and end the completion.
 */
export class NoTokenAllowedError extends InvalidRequestError {
  constructor(param: string, message: string) {
    super(param, message, "no_token_allowed");
  }
}

/** A JSON Schema says what a grammar cannot hold every output to, or is no schema. */
export class SchemaError extends InvalidRequestError {
  constructor(
    param: string,
    /** The keyword at fault. */
    readonly keyword: string,
    /** JSON pointer of the schema that has it; "" is the root. */
    readonly path: string,
    reason: string,
  ) {
    super(param, `${keyword} at ${path === "" ? "the root" : path}: ${reason}`, "invalid_schema");
  }
}

/** A schema, regular expression or grammar is larger than the budget of one request. */
export class GrammarTooComplexError extends InvalidRequestError {
  constructor(param: string, message: string) {
    super(param, message, "grammar_too_complex");
  }
}

/** The prompt, or prompt plus `maxTokens`, does not fit the context or the KV pool. */
export class ContextLengthError extends InvalidRequestError {
  constructor(
    param: string,
    message: string,
    /** Tokens asked for. */
    readonly requested: number,
    /** Tokens that would fit. */
    readonly limit: number,
  ) {
    super(param, message, "context_length_exceeded");
  }
}

/** The chat template does not parse, fails, or exceeds its budget. */
export class ChatTemplateError extends InvalidRequestError {
  constructor(message: string) {
    super("messages", message, "template_error");
  }
}

/** A request failed while running (for example its logits became NaN); other requests go on. */
export class RequestFailedError extends OctavoError {
  readonly exitCode = ExitCode.internal;

  constructor(
    message: string,
    readonly code: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The engine has been disposed of, or has died; `cause` says of what. */
export class EngineDeadError extends OctavoError {
  readonly code: string = "engine_dead";
  readonly exitCode = ExitCode.internal;
}

/** The replica that ran the request has died, as `cause` says, and others go on: the request may be sent again. */
export class ReplicaDeadError extends EngineDeadError {
  override readonly code = "replica_dead";

  constructor(
    /** Its index among the replicas. */
    readonly replica: number,
    cause: EngineDeadError,
  ) {
    super(`replica ${replica} died: ${cause.message}`, { cause });
  }
}

/** A bug in Octavo: an invariant does not hold. Never caught inside the engine. */
export class InvariantError extends OctavoError {
  readonly code = "internal_error";
  readonly exitCode = ExitCode.internal;
}

/** Throws `InvariantError` unless `condition`: for our own bugs, never for a user's input. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}

/** The message of anything thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
