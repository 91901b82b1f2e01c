// The routes, shown by Swagger UI from this server's own files; a key that is typed in stays in this tab.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#routes",
  validatorUrl: null, // would send this deployment's address to a host of its own
});
