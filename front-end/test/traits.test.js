import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { throttledTrait } from "../src/traits.js";

test("a value is set and sent at most once per interval, the last one included", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const model = { value: 1, sent: [], get: () => model.value, set: (_, value) => (model.value = value) };
  model.save_changes = () => model.sent.push(model.value);
  const sigma = throttledTrait(model, "sigma");
  for (let i = 0; i < 50; i += 1) sigma.set(i / 50);
  assert.deepEqual([model.value, model.sent], [1, []], "a confirmation of an earlier value cannot overwrite it");
  mock.timers.tick(100);
  assert.deepEqual(model.sent, [49 / 50]);
  sigma.set(49 / 50);
  mock.timers.tick(500);
  assert.equal(model.sent.length, 1);
  mock.timers.reset();
});
