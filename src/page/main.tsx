import { render } from "preact";
import { App } from "./app.tsx";
import { Chat } from "./chat/chat.ts";
import { EngineFeed } from "./engine/engine-feed.ts";
import { MetricsFeed } from "./metrics/metrics-feed.ts";
import { Models } from "./models.ts";
import { ServerAccess } from "./server-access.ts";
import { applyTheme } from "./theme.ts";

applyTheme();
const access = new ServerAccess();
const parts = {
  access,
  models: new Models(access),
  chat: new Chat(access),
  engine: new EngineFeed(access),
  metrics: new MetricsFeed(access),
};
render(<App {...parts} />, document.getElementById("app")!);
