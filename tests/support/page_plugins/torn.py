"""A plugin that does not load."""

raise RuntimeError("<script>document.title='taken'</script>")
