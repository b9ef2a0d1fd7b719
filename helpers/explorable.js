// Moves the sliders of one static figure: shows the frame and reads out its description.
(function (frames, alts) {
  var script = document.currentScript;
  var figure = (script && script.closest("figure")) || document.getElementById("%ID%");
  var image = figure.querySelector("img");
  var sliders = figure.querySelectorAll("input");
  function show() {
    var index = 0;
    sliders.forEach(function (slider) {
      var text = slider.dataset.texts.split("|")[slider.value];
      index = index * (Number(slider.max) + 1) + Number(slider.value);
      slider.setAttribute("aria-valuetext", text);
      slider.parentNode.querySelector("output").textContent = text;
    });
    image.src = frames[index];
    image.alt = alts[index];
  }
  sliders.forEach(function (slider) { slider.addEventListener("input", show); });
  show(); // browsers keep slider positions on reload
})(%FRAMES%, %ALTS%);
