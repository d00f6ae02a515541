// An empty page with an opaque origin, into which the opener writes a report. The report's scripts cannot reach the token or the network.
"use strict";
addEventListener("message", (event) => {
  if (event.source !== opener) return;
  document.open();
  document.write(event.data);
  document.close();
});
opener.postMessage("ready", "*");
