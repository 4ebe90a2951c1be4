
document.querySelector("input").addEventListener("input", ({target}) => {
  const part = target.value.toLowerCase();
  for (const row of document.querySelectorAll(".ranked li")) row.hidden = !row.children[1].textContent.toLowerCase().includes(part);
});
