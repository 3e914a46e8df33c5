// A click on an image shows its card as large as the window; arrow keys go on to the next one, Escape closes.
const dialog = document.querySelector("dialog");
const stage = dialog.querySelector(".stage");
const cards = [...document.querySelectorAll("main .card")];
let shown = 0;

function show(place) {
  shown = (place + cards.length) % cards.length;
  stage.replaceChildren(cards[shown].cloneNode(true));
  stage.scrollTop = 0;
  if (!dialog.open) dialog.showModal();
}

function close() {
  dialog.close();
  cards[shown].focus({ preventScroll: true });
}

document.querySelector("main").addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card && event.target.tagName === "IMG") show(cards.indexOf(card));
});
document.querySelector("main").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches(".card")) show(cards.indexOf(event.target));
});
dialog.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && button.dataset.step) show(shown + Number(button.dataset.step));
  else if (button || event.target === dialog || event.target === stage) close();
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(shown - 1);
  if (event.key === "ArrowRight") show(shown + 1);
});
