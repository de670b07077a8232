import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import * as library from "../syncserver.js";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

test("the types describe the API as an app uses it", () => {
  const compiler = createRequire(import.meta.url).resolve("typescript/bin/tsc");
  const { status, stdout } = spawnSync(process.execPath, [compiler, "--strict", "--noEmit",
    "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom",
    here("types.ts")], { encoding: "utf8" });
  assert.equal(stdout, "");
  assert.equal(status, 0);
});

test("the types name every export", () => {
  const types = readFileSync(here("../syncserver.d.ts"), "utf8");
  for (const name of Object.keys(library)) {
    assert.match(types, new RegExp(`export (abstract )?(class|function) ${name}\\b`));
  }
  const values = [...types.matchAll(/export (?:abstract )?(?:class|function) (\w+)/g)];
  assert.deepEqual(values.map((match) => match[1]).sort(), Object.keys(library).sort());
});
