// Hide the rows of the table below a filter field that do not hold every word typed into it.
document.addEventListener("DOMContentLoaded", () => {
  for (const field of document.querySelectorAll("input.table-filter")) {
    const rows = field.nextElementSibling.querySelectorAll("tbody tr");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
});
