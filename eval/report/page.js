"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Tooltips, for the mouse and for the keyboard.
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8),
      width - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(above < 4 ? box.bottom + 8 : above) + window.scrollY}px`;
  };
  document.addEventListener("pointerover", (event) => {
    const target = event.target.closest("[data-tip]");
    if (target) show(target); else hide();
  });
  document.addEventListener("focusin", (event) => {
    const target = event.target.closest("[data-tip]");
    if (target && target.matches(":focus-visible")) show(target);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // The legend brings one series forward.
  for (const button of all(".key button")) {
    const plots = button.closest(".pareto");
    const groups = all(".plot g[data-series]", plots).filter(
      (group) => group.dataset.series === button.dataset.series);
    const set = (on) => {
      for (const svg of all(".plot svg", plots)) svg.classList.toggle("dim", on);
      for (const group of groups) group.classList.toggle("on", on);
    };
    for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => set(true));
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => set(false));
  }

  // Sorting; rows without a figure always go last.
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") === "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.children[column].dataset.v;
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = column === 0 ? x.localeCompare(y) : Number(x) - Number(y);
        return rising ? order : -order;
      });
      body.append(...rows);
    }));
  }

  // Press and hold a picture to see dense in its place.
  for (const cards of all(".stage")) {
    const dense = cards.querySelector(".dense img.frame");
    if (!dense) continue;
    for (const picture of all(".card:not(.dense) img.frame:not(.heat)", cards)) {
      const own = picture.src;
      picture.title = "Press and hold: dense";
      picture.draggable = false;
      picture.addEventListener("pointerdown", () => { picture.src = dense.src; });
      for (const name of ["pointerup", "pointerleave", "pointercancel"])
        picture.addEventListener(name, () => { picture.src = own; });
      picture.addEventListener("contextmenu", (event) => event.preventDefault());
    }
  }

  // A clip plays as soon as it is unfolded, and rests when it is folded.
  for (const fold of all("details.clip")) {
    const video = fold.querySelector("video");
    fold.addEventListener("toggle", () => {
      if (fold.open) video.play().catch(() => { /* the browser forbids it */ });
      else video.pause();
    });
  }

  // Cards of a batch job: every word typed must stand in the card's text.
  for (const input of all("input.filter")) {
    const section = input.closest("section");
    const cards = all(".item", section);
    const shown = section.querySelector("output");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const card of cards) {
        card.hidden = !words.every((word) => card.dataset.text.includes(word));
        count += !card.hidden;
      }
      shown.textContent = `${count} shown`;
    });
  }

  // The videos of one sample start together at every round, led by the first.
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (const sample of all(".sample")) {
    const videos = all("video", sample);
    if (!videos.length) continue;
    const [leader] = videos;
    const play = sample.querySelector(".play");
    const slow = sample.querySelector(".slow");
    let wanted = !calm;
    let seen = false;
    const start = () => {
      for (const video of videos) video.play().catch(() => { /* the browser forbids it */ });
    };
    const apply = () => {
      if (wanted && seen) start(); else for (const video of videos) video.pause();
      play.textContent = wanted ? "Pause" : "Play";
    };
    for (const video of videos) {
      video.muted = true;
      video.loop = false;
      video.controls = false;
    }
    leader.addEventListener("ended", () => {
      for (const video of videos) video.currentTime = 0;
      if (wanted && seen) start();
    });
    leader.addEventListener("timeupdate", () => {
      for (const video of videos)
        if (Math.abs(video.currentTime - leader.currentTime) > 0.2)
          video.currentTime = leader.currentTime;
    });
    play.addEventListener("click", () => { wanted = !wanted; apply(); });
    slow.addEventListener("click", () => {
      const on = slow.getAttribute("aria-pressed") !== "true";
      slow.setAttribute("aria-pressed", String(on));
      for (const video of videos) video.playbackRate = on ? 0.5 : 1;
    });
    new IntersectionObserver((entries) => {
      seen = entries[entries.length - 1].isIntersecting;
      apply();
    }).observe(sample);
  }
})();
