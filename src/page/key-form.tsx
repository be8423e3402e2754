import { useEffect, useRef, useState } from "preact/hooks";
import { type ServerAccess, ServerError } from "./server-access.ts";

const WRONG = "The server does not take that key.";

/** Asks for the API key that the server wants. */
export function KeyForm({ access }: { readonly access: ServerAccess }) {
  const field = useRef<HTMLInputElement>(null);
  const [remember, setRemember] = useState(false);
  const [problem, setProblem] = useState(access.hasKey ? WRONG : "");
  useEffect(() => field.current?.focus(), []);
  const submit = async (event: Event) => {
    event.preventDefault();
    const key = field.current!.value.trim();
    if (key === "") return;
    setProblem("");
    try {
      await access.unlock(key, remember);
    } catch (error) {
      const isWrong = error instanceof ServerError && error.status === 401;
      setProblem(isWrong ? WRONG : (error as Error).message);
      field.current?.select();
    }
  };
  return (
    <main class="key-form">
      <form onSubmit={submit}>
        <h1>Octavo</h1>
        <p>
          <label for="key">This server needs an API key.</label>
        </p>
        <input
          ref={field}
          id="key"
          type="password"
          autocomplete="current-password"
          aria-invalid={problem !== ""}
        />
        <label class="check">
          <input
            type="checkbox"
            checked={remember}
            onChange={(event) => setRemember(event.currentTarget.checked)}
          />{" "}
          Remember it in this browser
        </label>
        <button type="submit" class="primary">
          Enter
        </button>
        <p class="error" role="alert">
          {problem}
        </p>
      </form>
    </main>
  );
}
