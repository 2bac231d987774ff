// A token shows the server who this is, where it wants to know. It is kept for this tab alone, and stands in no link and
// in no call to copy.

const TOKEN = "xformd-token";
let givenToken = readToken();

function readToken() {
  try {
    return sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return ""; // the browser keeps nothing for this site
  }
}

function useToken(text) {
  givenToken = text.trim();
  try {
    if (givenToken) sessionStorage.setItem(TOKEN, givenToken);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // It lasts until the page is left.
  }
}

const tokenHeaders = () => (givenToken ? { Authorization: `Bearer ${givenToken}` } : {});

// Asks for a token; reason says why, if the server has refused something.
function askForToken(reason = "") {
  byId("token-form").hidden = false;
  byId("token-error").textContent = reason;
  byId("token-error").hidden = !reason;
  byId("token").focus();
}

// changed() is called with another token, or with none.
function listenToToken(changed) {
  const takesTokens = Boolean(setting("xformd-takes-tokens"));
  byId("token-open").hidden = !takesTokens;
  byId("token-open").addEventListener("click", () => askForToken());
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(byId("token").value);
    byId("token").value = "";
    byId("token-form").hidden = true;
    changed();
  });
}
