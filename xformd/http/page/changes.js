// With "xformd dev", the page follows the plugin: after each change it is told what is wrong, and lists and runs anew.

const CHANGES_RETRY_MS = 500;

// changed(problems): lines for the person who writes the plugin.
async function followChanges(changed) {
  if (!setting("xformd-follows-changes")) return;
  for (let version = ""; ; ) {
    try {
      const news = await (await ask(`dev?${version}`)).json();
      if (news.version === version) throw news; // a server that drains lets nobody wait
      version = news.version;
      changed(news.problems);
    } catch {
      await new Promise((resolve) => setTimeout(resolve, CHANGES_RETRY_MS)); // it is stopping, or being started again
    }
  }
}
