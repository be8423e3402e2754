import { useState } from "preact/hooks";
import { useStore } from "../store.ts";
import type { Chat } from "./chat.ts";
import { PARAMETER_GROUPS, type Parameter, ParameterError, parameterJson } from "./parameters.ts";

/** System prompt and parameters of the open conversation; new ones begin with them. */
export function SettingsPanel({ chat }: { readonly chat: Chat }) {
  const { settings, id } = useStore(chat.open);
  const { values, system, alternatives } = settings;
  const isSet = Object.values(values).some((value) => value !== "");
  const set = (name: string, value: string) => {
    const { [name]: _, ...others } = chat.open.value.settings.values;
    chat.configure({ values: value === "" ? others : { ...others, [name]: value } });
  };
  return (
    <section class="panel settings" aria-label="Parameters" key={id}>
      <header>
        <h2>Parameters</h2>
        <button type="button" class="quiet" disabled={!isSet} onClick={() => chat.configure({ values: {} })}>
          Reset
        </button>
      </header>
      <label class="field wide">
        System prompt
        <textarea
          rows={3}
          value={system}
          placeholder="None"
          onInput={(event) => chat.configure({ system: event.currentTarget.value })}
        />
      </label>
      <label class="field">
        Token probabilities
        <select
          value={String(alternatives)}
          onChange={(event) => chat.configure({ alternatives: Number(event.currentTarget.value) })}
        >
          <option value="0">off</option>
          {[1, 5, 10, 20].map((count) => (
            <option key={count} value={String(count)}>
              top {count}
            </option>
          ))}
        </select>
      </label>
      {PARAMETER_GROUPS.map(({ title, parameters }, i) => {
        const count = parameters.filter(({ name }) => (values[name] ?? "") !== "").length;
        return (
          <details key={title} open={i === 0 || count > 0}>
            <summary>
              {title}
              {count > 0 && <span class="muted"> · {count} set</span>}
            </summary>
            {parameters.map((parameter) => (
              <ParameterField
                key={parameter.name}
                parameter={parameter}
                value={values[parameter.name] ?? ""}
                onChange={set}
              />
            ))}
          </details>
        );
      })}
    </section>
  );
}

interface FieldProps {
  readonly parameter: Parameter;
  readonly value: string;
  readonly onChange: (name: string, value: string) => void;
}

function ParameterField({ parameter, value, onChange }: FieldProps) {
  const { name, label, kind, hint } = parameter;
  const [isTouched, setTouched] = useState(false);
  const isWide = kind === "json" || kind === "lines";
  const error = isTouched ? mistake(parameter, value) : undefined;
  return (
    <div class={isWide ? "field wide" : "field"}>
      <label for={`p-${name}`}>{label}</label>
      {control(parameter, value, {
        id: `p-${name}`,
        "aria-describedby": `h-${name}`,
        "aria-invalid": error !== undefined,
        onBlur: () => setTouched(true),
        onInput: (event) => onChange(name, (event.currentTarget as HTMLInputElement).value),
      })}
      <p class="hint" id={`h-${name}`}>
        {error === undefined ? hint : <span class="error">{error}</span>} <code>{name}</code>
      </p>
    </div>
  );
}

interface ControlProps {
  readonly id: string;
  readonly "aria-describedby": string;
  readonly "aria-invalid": boolean;
  readonly onBlur: () => void;
  readonly onInput: (event: Event) => void;
}

function control({ kind, choices, min, max, step, example }: Parameter, value: string, props: ControlProps) {
  const list = kind === "flag" ? ["true", "false"] : choices;
  if (list)
    return (
      <select {...props} value={value}>
        <option value="">default</option>
        {list.map((choice) => (
          <option key={choice} value={choice}>
            {{ true: "on", false: "off" }[choice] ?? choice}
          </option>
        ))}
      </select>
    );
  if (kind === "json" || kind === "lines")
    return (
      <textarea
        {...props}
        class="code"
        rows={2}
        spellcheck={false}
        placeholder={example ?? ""}
        value={value}
      />
    );
  if (kind === "text") return <input {...props} type="text" placeholder="none" value={value} />;
  // Integers are text: a number's field would round a long seed.
  return kind === "integer" ? (
    <input {...props} type="text" inputMode="numeric" placeholder="default" value={value} />
  ) : (
    <input {...props} type="number" placeholder="default" value={value} {...{ min, max, step }} />
  );
}

function mistake(parameter: Parameter, value: string): string | undefined {
  try {
    parameterJson(parameter, value);
    return undefined;
  } catch (error) {
    if (error instanceof ParameterError) return error.message;
    throw error;
  }
}
