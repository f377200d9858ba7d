"use strict";
// What every page uses: requests with the token, and elements whose text is never markup.
const ilgnet = (() => {
  const KEY = "token";
  const SVG = "http://www.w3.org/2000/svg";

  // The address that the server prints ends in #token=...: browsers do not send that part.
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname + location.search);
  }

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const drawing = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const find = (id) => document.getElementById(id);

  let asking = null;
  function askToken(problem) {
    asking ??= new Promise((resolve) => {
      const dialog = find("token-dialog");
      find("token-problem").textContent = problem;
      find("token-form").addEventListener("submit", (event) => {
        event.preventDefault();
        sessionStorage.setItem(KEY, find("token-text").value.trim());
        find("token-text").value = "";
        dialog.close();
        asking = null;
        resolve();
      }, { once: true });
      dialog.addEventListener("cancel", (event) => event.preventDefault());
      dialog.showModal();
    });
    return asking;
  }

  const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

  // Return the answer to a request; asks for the token where it is missing, waits where the server is busy.
  async function api(path, options = {}, tries = 5) {
    const headers = new Headers(options.headers);
    const token = sessionStorage.getItem(KEY);
    let answer;
    try {
      if (token) headers.set("Authorization", `Bearer ${token}`);
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      throw new Error("The server does not answer; is it still running?");
    }
    if (answer.status === 401) {
      await askToken(token ? "The server does not accept that token." : "");
      return api(path, options, tries);
    }
    if (answer.status === 503 && tries > 0) {
      await pause(1000);
      return api(path, options, tries - 1);
    }
    if (!answer.ok) {
      let text = `The server answered ${answer.status}.`;
      try { text = (await answer.json()).error ?? text; } catch (error) { /* not JSON: the status says it */ }
      throw new Error(text);
    }
    return answer;
  }

  return { api, drawing, element, find, pause };
})();
