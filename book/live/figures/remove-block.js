// Chapter 2: blocks of the ResNet that only hand on their input, and the same done to layers of a plain network.
"use strict";
live.figures["remove-block"] = async (root) => {
  const [resnet, vgg] = [await live.load("ResNet"), await live.load("VGG")];
  const cards = [live.card("ResNet"), live.card("VGG")], teller = live.teller();
  // A residual block hands on its input when its branch is zero. A layer of a plain network has no shortcut: its input
  // takes the place of its output, where both have as many maps.
  const blocks = Object.keys(resnet.names).filter((name) => /^layer\d+\.\d+\.bn2$/.test(name))
    .map((name, i) => ({ name: `block ${i + 1}`, off: false, change: [resnet.names[name], live.zeros] }));
  const layers = vgg.steps.flatMap((s, i) => s.op === "conv" && s.shape[2] > 1 && s.shape[0] === s.shape[1] ? [{ name: `layer ${vgg.steps.slice(0, i + 1).filter((t) => t.op === "conv").length}`, off: false, from: s.in[0], to: i + 3 }] : []);
  const ticks = (list) => list.map((one) => live.tick(`without ${one.name}`, false, (off) => { one.off = off; frame.refresh(); }));
  const show = (picture) => {
    const whole = [resnet, vgg].map((network) => live.ask(network, picture));
    const cut = new Map(blocks.filter((block) => block.off).map((block) => block.change));
    const around = new Map(layers.filter((layer) => layer.off).map(({ from, to }) => [to, (x, values) => values[from]]));
    const left = [live.ask(resnet, picture, cut), live.ask(vgg, picture, around)];
    root.live = left.map(({ share }) => Array.from(share));
    cards.forEach((card, i) => {
      card.bars.show(left[i].share);
      const before = whole[i].best, name = live.info.classes[before];
      card.say(`whole, it says ${name}, ${live.percent(whole[i].share[before])}; now ${name} has ${live.percent(left[i].share[before])}`);
    });
    teller.say(["ResNet", "VGG"].map((name, i) => `${name} says ${live.info.classes[left[i].best]}, whole it says ${live.info.classes[whole[i].best]}`).join("; ") + ".");
  };
  cards[0].section.append(...ticks(blocks));
  cards[1].section.append(...ticks(layers));
  const frame = live.frame(root, [], [live.make("div", { class: "live-row" }, ...cards.map((card) => card.section)), teller.line], show);
};
