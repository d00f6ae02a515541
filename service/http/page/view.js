// An empty page of no origin that the opener writes a report into: its scripts can reach neither token nor network.
"use strict";
addEventListener("message", (event) => {
  if (event.source !== opener) return;
  document.open();
  document.write(event.data);
  document.close();
});
opener.postMessage("ready", "*");
