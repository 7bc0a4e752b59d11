import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { goneText, kernelStatus, makeRequests, waitingText } from "../src/requests.js";

function fakeModel(kernel) {
  const handlers = new Set();
  return {
    sent: [],
    widget_manager: { kernel },
    send(...message) {
      this.sent.push(message);
    },
    on: (_, handler) => handlers.add(handler),
    off: (_, handler) => handlers.delete(handler),
    reply: (message) => handlers.forEach((handler) => handler(message)),
  };
}

test("a request is displayed at once and its reply replaces the text", () => {
  const shown = [];
  const model = fakeModel({ status: "idle" });
  const requests = makeRequests(model, (text) => shown.push(text));
  requests.send({ kind: "save" }, { text: "saving …" });
  assert.deepEqual(model.sent[0][0], { kind: "save", request: 1 });
  model.reply({ kind: "reply", request: 2, text: "another view" });
  model.reply({ kind: "reply", request: 1, text: "done" });
  model.reply({ kind: "reply", request: 1, text: "twice" });
  assert.deepEqual(shown, ["saving …", "done"]);
});

test("a request without a reply ends with what to do", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const shown = [];
  const requests = makeRequests(fakeModel({ status: "busy" }), (text) => shown.push(text));
  requests.send({ kind: "save" });
  mock.timers.tick(3999);
  assert.deepEqual(shown, ["waiting for the kernel …"]);
  mock.timers.tick(2);
  assert.match(shown[1], /busy with another cell/);
  requests.close();
  mock.timers.reset();
});

test("the text follows the status of the kernel", () => {
  assert.match(waitingText("dead"), /Restart it/);
  assert.match(waitingText("autorestarting"), /restarting/);
  assert.match(waitingText("disconnected"), /no connection/);
  assert.match(waitingText(undefined), /busy, or it was restarted/);
  assert.equal(kernelStatus(fakeModel({ status: "idle", connectionStatus: "disconnected" })), "disconnected");
  assert.equal(kernelStatus({}), undefined);
});

test("the end of a connection is reported with its reason", () => {
  assert.match(goneText("autorestarting"), /was restarted.*run this cell again/);
  assert.match(goneText("dead"), /has stopped/);
});
